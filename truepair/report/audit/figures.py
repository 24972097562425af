"""The charts of the audit page: the loss with its mixture, whether p_noise is right, what labels made of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from truepair.noise import Reliability
from truepair.report import charts, svg
from truepair.report.audit.record import AuditRecord
from truepair.report.curves import Figure


def figures(record: AuditRecord) -> list[Figure]:
    """Those for which the audit has numbers."""
    calibration = record.about.get("calibration")
    return [
        *_loss(record),
        *_reliability(record),
        *(_recalibration(calibration["map"]) if calibration and calibration.get("map") else []),
    ]


def p_noise_bars(counts: NDArray[np.int64], bars: int = 100) -> str:
    """A path of `bars` bars over a field of 1000 x 100, their heights the square roots of the counts.

    counts: (m,), m a multiple of `bars`.
    """
    heights = np.sqrt(counts.reshape(bars, -1).sum(1).astype(np.float64))
    heights = 100 * heights / max(heights.max(), 1)
    width = 1000 / bars
    return "".join(
        f"M{i * width + 0.75:g} 100V{100 - max(height, 1.2):.1f}h{width - 1.5:g}V100z"
        for i, height in enumerate(heights.tolist())
        if height > 0
    )


def _loss(record: AuditRecord) -> list[Figure]:
    """The histogram of the losses of all scored pairs, with what was fitted to them."""
    mixture, seen = record.mixture, np.isfinite(record.loss)
    if mixture is None or not seen.any():
        return []
    loss = record.loss[seen].astype(np.float64)
    truth = None if record.truth is None else record.truth[seen]
    doubted = mixture.posterior(loss) >= 0.5
    crossing = float(loss[doubted].min()) if doubted.any() and not doubted.all() else None
    bars: tuple[tuple[str, str], ...] = (("bar unknown", "pairs"),)
    if truth is not None:
        bars = (("bar matched", "really matched"), ("bar mismatched", "really mismatched"))
    text = (
        "Bars: how many pairs have which loss. It is the CLIP loss in units of cosine (−negCLIPLoss): how much nearer "
        "the image is to other captions, and the caption to other images, than they are to each other. "
    )
    if mixture.degenerate:
        text += f"No two groups were found in them: {mixture.degenerate}."
    else:
        bars = (*bars, ("curve matched", "lower group"), ("curve mismatched", "higher group"), ("dashes", "p_noise"))
        text += "Curves: the two groups fitted to it. Dashed, with its own axis: p_noise"
        text += ", before labels recalibrated it." if record.recalibrated else "."
    if crossing is not None:
        text += f" Right of the dot (loss {crossing:.3f}) a pair is more likely mismatched than not."
    description = f"Histogram of the losses of {len(loss):,} pairs"
    return [Figure("Loss of all pairs", charts.loss_histogram(loss, truth, mixture, crossing, description), text, bars)]


def _reliability(record: AuditRecord) -> list[Figure]:
    found = record.about.get("reliability")
    if not found or not any(found["counts"]):
        return []
    diagram = Reliability(
        _vector(found["edges"]),
        np.array(found["counts"], np.int64),
        _vector(found["confidence"]),
        _vector(found["accuracy"]),
    )
    known = "the truth column" if record.truth is not None else "your labels"
    scale = "p_noise, as your labels recalibrated it" if record.recalibrated else "p_noise"
    text = (
        f"Pairs are put together by {scale}; a dot's height is the share of them that {known} calls mismatched, its "
        "size how many they are. On the diagonal, p_noise is the true share. The mean distance from it (ECE) is "
        f"{diagram.error():.3f}."
    ).replace("labels calls", "labels call")
    chart = charts.reliability_diagram(diagram, f"Share of mismatched pairs by p_noise, as {known} has it")
    return [Figure("Can p_noise be taken at its word?", chart, text)]


def _recalibration(points: list[list[float]]) -> list[Figure]:
    """The map from p_noise to what the labels make of it. points: (p, p')."""
    x, y = _vector(points).T

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.11, 0.17, 0.86, 0.79))
        axes.plot([0, 1], [0, 1], color=svg.FAINT, linewidth=0.9, dashes=(3, 3))
        axes.plot(x, y, color=svg.MISMATCHED)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.06)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel("p_noise of the model")

    text = (
        "Curve: the p_noise that labelled pairs give in place of the model's. Where it runs under the diagonal, the "
        "model doubted too many pairs. Thresholds on this page are on the recalibrated scale."
    )
    return [Figure("What your labels made of p_noise", svg.draw(paint, "Recalibrated p_noise by p_noise"), text)]


def _vector(values: Any) -> NDArray[np.float64]:
    return np.array(values, np.float64)  # null becomes NaN
