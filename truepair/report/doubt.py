"""The part of a run page about the pairs: how their losses split, whether p_noise is right, which pairs are worst."""

import math
from dataclasses import dataclass

from truepair.noise import Reliability, detection, reliability
from truepair.report import charts
from truepair.report.curves import Figure
from truepair.report.opinion import opinion_figures, opinion_summary
from truepair.report.record import NoiseFit, PairLosses, RunRecord
from truepair.report.thumbnails import DoubtedPair, doubted_pairs


@dataclass(frozen=True)
class Doubt:
    """What one run came to think of its pairs."""

    label: str
    colour: int
    summary: list[list[str]]  # paragraphs of sentences
    figures: list[Figure]
    pairs: list[DoubtedPair]
    heading: str  # over the pairs
    missing: str  # why there is nothing to show, "" if there is


def doubt(record: RunRecord, label: str, number: int, worst: int) -> Doubt:
    """What `record` says of its pairs, the `worst` most doubted ones shown."""
    losses = record.losses
    warmup, epochs = record.config.noise.warmup_epochs, record.config.epochs
    unfitted = f"the first fit comes after {warmup} epochs (noise.warmup_epochs)"
    if warmup > epochs:
        unfitted = f"No noise model was fitted: {unfitted}, and the run has {epochs}."
    else:
        unfitted = f"No noise model has been fitted yet: {unfitted}."
    if losses is None or not len(losses.rows):
        kept = record.fits or record.splits
        reason = "The losses of the pairs were not kept in this run's directory." if kept else unfitted
        return Doubt(label, number, [], [], [], "", reason)
    said = [[unfitted] if losses.fit is None else _summary(losses, losses.fit)]
    figures = [] if losses.fit is None else _figures(losses, losses.fit, label)
    if losses.opinion is not None:
        said.append(opinion_summary(losses.opinion))
        figures += opinion_figures(losses, losses.opinion, label)
    pairs: list[DoubtedPair] = []
    if record.table is not None and int(losses.rows.max()) < len(record.table):
        pairs = doubted_pairs(record.table, losses, worst, record.config.pairs.caption_column)
    opined = losses.sound or losses.opinion is not None
    heading = f"The {len(pairs)} {'most doubted pairs' if opined else 'pairs of highest loss'}"
    if pairs and losses.truth is not None:
        heading += f": {sum(bool(pair.truth) for pair in pairs)} of them are really mismatched"
    return Doubt(label, number, said, figures, pairs, heading, "")


def _figures(losses: PairLosses, fit: NoiseFit, label: str) -> list[Figure]:
    """The losses with the noise model fitted to them and, where the truth is known, whether it is right."""
    crossing = _crossing(losses)
    description = f"{label}: histogram of the losses of {len(losses.loss):,} pairs"
    chart = charts.loss_histogram(losses.loss, losses.truth, fit.mixture, crossing, description)
    text, key = _histogram_text(losses, fit, crossing), _histogram_key(losses, fit)
    figures = [Figure("Losses of all pairs", chart, text, key)]
    if losses.truth is not None and losses.sound:
        diagram = reliability(losses.p_noise, losses.truth)
        chart = charts.reliability_diagram(diagram, f"{label}: share of really mismatched pairs by p_noise")
        figures.append(Figure("Can p_noise be taken at its word?", chart, _reliability_text(diagram)))
    return figures


def _crossing(losses: PairLosses) -> float | None:
    """The least loss of a pair that is more likely mismatched than not; None if none or every pair is."""
    doubted = losses.p_noise >= 0.5
    return float(losses.loss[doubted].min()) if doubted.any() and not doubted.all() else None


def _summary(losses: PairLosses, fit: NoiseFit) -> list[str]:
    """What the noise model says of the pairs, and, where the truth is known, how right it is."""
    mixture, said = fit.mixture, []
    if mixture.degenerate:
        said.append(
            f"After epoch {fit.epoch} the losses did not fall into two groups ({mixture.degenerate}), so no pair is "
            "doubted: p_noise is 0 everywhere."
        )
    else:
        said.append(
            f"After epoch {fit.epoch} the losses of {len(losses.loss):,} pairs were split into a lower group around "
            f"{mixture.means[0]:.2f} ({100 * mixture.weights[0]:.0f} % of the pairs) and a higher one around "
            f"{mixture.means[1]:.2f}. A network learns "
            "matched pairs first, so the higher group is taken for mismatched."
        )
    if losses.unseen:
        said.append(f"{losses.unseen:,} pairs had not been seen yet and are left out.")
    if losses.truth is None or mixture.degenerate:
        return said
    doubted = losses.p_noise >= 0.5
    hits, real = int((doubted & losses.truth).sum()), int(losses.truth.sum())
    if doubted.any() and real:
        said.append(
            f"Of the {doubted.sum():,} pairs with p_noise of ½ or more, {100 * hits / doubted.sum():.0f} % are "
            f"really mismatched; they are {100 * hits / real:.0f} % of all mismatched pairs."
        )
    auroc = detection(losses.p_noise, losses.truth).auroc
    if math.isfinite(auroc):
        said.append(f"A mismatched pair is doubted more than a matched one {100 * auroc:.0f} times in a hundred.")
    return said


def _histogram_text(losses: PairLosses, fit: NoiseFit, crossing: float | None) -> str:
    if fit.mixture.degenerate:
        return "Bars: how many pairs have which loss. No two groups were found in them."
    text = "Bars: how many pairs have which loss. Curves: the two fitted groups. Dashed, with its own axis: p_noise."
    if crossing is None:
        return text
    return (
        f"{text} Pairs to the right of the crossing (the dot, loss {crossing:.2f}) are more likely mismatched than "
        f"not: {(losses.p_noise >= 0.5).sum():,} of {len(losses.loss):,}."
    )


def _histogram_key(losses: PairLosses, fit: NoiseFit) -> tuple[tuple[str, str], ...]:
    bars: tuple[tuple[str, str], ...] = (("bar unknown", "pairs"),)
    if losses.truth is not None:
        bars = (("bar matched", "really matched"), ("bar mismatched", "really mismatched"))
    if fit.mixture.degenerate:
        return bars
    return (*bars, ("curve matched", "lower group"), ("curve mismatched", "higher group"), ("dashes", "p_noise"))


def _reliability_text(diagram: Reliability) -> str:
    return (
        "Pairs are put together by p_noise; a dot's height is the share of them that is really mismatched, its size "
        "how many they are. On the diagonal, p_noise is the true share. The mean distance from it (ECE) is "
        f"{diagram.error():.3f}."
    )
