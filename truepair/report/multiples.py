"""The noise model over epochs, as small multiples: the losses of all pairs, drawn apart by training, epoch by epoch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from truepair.report import svg
from truepair.report.curves import Figure
from truepair.report.record import PairLosses, RunRecord
from truepair.report.svg import FAINT, HEIGHT, MATCHED, MISMATCHED, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PANELS, ACROSS = 6, 3  # panels at most, and in a row of them
BARS = 40


def mixtures(record: RunRecord, label: str) -> Figure | None:
    """Up to PANELS fits of a run, the first and the last among them; None where there are not two to compare."""
    fits = record.sound_fits
    if len(fits) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(fits) - 1, PANELS).round()).astype(np.int64)
    known = [losses for losses in (record.after(fits[place]) for place in chosen) if losses and len(losses.rows)]
    if len(known) < 2:
        return None
    text = (
        "The losses of all pairs with the two fitted groups after some of the epochs, over the same range. The groups "
        "move apart while matched pairs are learnt, and close up again when the mismatched are learnt by heart."
    )
    bars = (("bar unknown", "pairs"),)
    truth = (("bar matched", "really matched"), ("bar mismatched", "really mismatched"))
    key = truth if known[-1].truth is not None else bars
    return Figure("The two groups, epoch by epoch", _drawn(known, f"{label}: losses by epoch"), text, key)


def _drawn(known: Sequence[PairLosses], description: str) -> str:
    """A panel for each; all have a fit."""
    low = min(float(losses.loss.min()) for losses in known)
    high = max(float(losses.loss.max()) for losses in known)
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    x = np.linspace(edges[0], edges[-1], 150)

    def paint(canvas: "Canvas") -> None:
        down = -(-len(known) // ACROSS)
        wide, high = WIDTH / ACROSS, HEIGHT / down
        for place, losses in enumerate(known):
            row, column = divmod(place, ACROSS)
            left, bottom = column * wide + 6, (down - 1 - row) * high + 22
            axes = canvas.add_axes((left / WIDTH, bottom / HEIGHT, (wide - 14) / WIDTH, (high - 38) / HEIGHT))
            real = losses.truth
            groups = [(losses.loss, FAINT)]
            if real is not None:
                groups = [(losses.loss[~real], MATCHED), (losses.loss[real], MISMATCHED)]
            for values, colour in groups:
                counts, _ = np.histogram(values, edges)
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
            assert losses.fit is not None
            for density, colour in zip(losses.fit.mixture.density(x), (MATCHED, MISMATCHED), strict=True):
                axes.plot(x, density * len(losses.loss) * (edges[1] - edges[0]), color=colour, linewidth=1.3)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(bottom=0)
            axes.grid(False)
            axes.set_yticks([])
            axes.locator_params(axis="x", nbins=3)
            axes.text(0, 1.06, f"epoch {losses.fit.epoch}", color=FAINT, transform=axes.transAxes)

    return svg.draw(paint, description)
