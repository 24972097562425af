"""The part of a run page about the pairs on which the noise model changed its mind between its first and last fit."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from truepair.report import charts
from truepair.report.curves import Figure
from truepair.report.record import PairLosses, RunRecord
from truepair.report.thumbnails import DoubtedPair, shown_pairs

SHOWN = 6  # pairs of each kind


@dataclass(frozen=True)
class Changed:
    """What one run came to think otherwise. groups: (heading, pairs), pairs that moved furthest first."""

    figure: Figure
    groups: list[tuple[str, list[DoubtedPair]]]


def changed(record: RunRecord, label: str) -> Changed | None:
    """The pairs that were doubted and are believed now, and the reverse; None without two fits to compare."""
    fits = record.sound_fits
    first, last = (record.after(fits[0]), record.after(fits[-1])) if len(fits) > 1 else (None, None)
    if first is None or last is None:
        return None
    _, before, now = np.intersect1d(first.rows, last.rows, assume_unique=True, return_indices=True)
    was, is_ = first.p_noise[before], last.p_noise[now]
    gained, lost = (was < 0.5) & (is_ >= 0.5), (was >= 0.5) & (is_ < 0.5)
    groups = []
    for name, moved, order in (("Doubted only now", gained, was - is_), ("Doubted no longer", lost, is_ - was)):
        places = np.flatnonzero(moved)
        places = places[np.argsort(order[places], kind="stable")][:SHOWN]
        if len(places) and record.table is not None and int(last.rows.max()) < len(record.table):
            pairs = shown_pairs(record.table, last, now[places], record.config.pairs.caption_column)
            pairs = [replace(pair, was=float(p)) for pair, p in zip(pairs, was[places], strict=True)]
            groups.append((f"{name}: {moved.sum():,} pairs, those that moved furthest", pairs))
    return Changed(_figure(first, last, was, is_, None if last.truth is None else last.truth[now], label), groups)


def _figure(
    first: PairLosses,
    last: PairLosses,
    was: NDArray[np.float64],
    is_: NDArray[np.float64],
    truth: NDArray[np.bool_] | None,
    label: str,
) -> Figure:
    assert first.fit is not None and last.fit is not None
    places = 2 * (is_ >= 0.5) + (was >= 0.5)
    counts = np.bincount(places, minlength=4)
    shares = None if truth is None else (np.bincount(places, truth, minlength=4) / np.maximum(counts, 1)).reshape(2, 2)
    kept, lost, gained, doubted = counts.tolist()
    text = (
        f"From epoch {first.fit.epoch} to epoch {last.fit.epoch} {gained:,} pairs came to be doubted and "
        f"{lost:,} to be believed; {doubted:,} were doubted both times, {kept:,} never."
    )
    if shares is not None:
        text += " The more of a field's pairs are really mismatched, the stronger its colour."
    chart = charts.fields(
        *(counts.reshape(2, 2), shares, f"{label}: pairs by p_noise then and now"),
        columns=(f"believed, epoch {first.fit.epoch}", f"doubted, epoch {first.fit.epoch}"),
        rows=("believed\nnow", "doubted\nnow"),
    )
    return Figure("Which pairs changed their side?", chart, text)
