"""The part of a run page about what the method itself thinks of the pairs, and how far the noise model agrees."""

import math

import numpy as np
from numpy.typing import NDArray

from truepair.evaluate.agreement import rank_correlation
from truepair.report import charts
from truepair.report.curves import Figure
from truepair.report.record import PairLosses, PairOpinions

Vector = NDArray[np.float64]


def opinion_summary(opinion: PairOpinions) -> list[str]:
    """Sentences on the method's last calls and, where the truth is known, on how right they are."""
    said = np.isfinite(opinion.confidence)
    called, split = int(opinion.noisy[said].sum()), opinion.split
    found = [
        "The method has an opinion of its own: a confidence c, from 0 to 1, in each pair it sees, by which it calls "
        f"some noisy and learns from them otherwise. Up to epoch {split.epoch}, {called:,} of {said.sum():,} pairs "
        f"({100 * called / max(said.sum(), 1):.0f} %) were called noisy when it last saw them."
    ]
    if math.isfinite(split.precision) and math.isfinite(split.recall):
        found.append(
            f"Of these {100 * split.precision:.0f} % are really mismatched; they are {100 * split.recall:.0f} % of all "
            "mismatched pairs."
        )
    if math.isfinite(split.auroc):
        found.append(
            f"A mismatched pair is believed less than a matched one {100 * split.auroc:.0f} times in a hundred."
        )
    return found


def opinion_figures(losses: PairLosses, opinion: PairOpinions, label: str) -> list[Figure]:
    """How the two opinions of the pairs agree, where there are two, and how often pairs were called noisy."""
    figures = [_agreement(losses, opinion, label)] if losses.sound else []
    return [*figures, _times(losses, opinion, label)] if opinion.times.any() else figures


def _agreement(losses: PairLosses, opinion: PairOpinions, label: str) -> Figure:
    said = np.isfinite(opinion.confidence)
    doubted, noisy = losses.p_noise[said] >= 0.5, opinion.noisy[said]
    places = 2 * noisy + doubted
    counts = np.bincount(places, minlength=4)
    shares: Vector | None = None
    if losses.truth is not None:
        real = np.bincount(places, losses.truth[said], minlength=4)
        shares = (real / np.maximum(counts, 1)).reshape(2, 2)
    neither, model, method, both = counts.tolist()
    text = (
        f"Both doubt {both:,} pairs, the noise model alone {model:,}, the method alone {method:,}; neither doubts "
        f"{neither:,}. They say the same of {100 * (both + neither) / max(counts.sum(), 1):.0f} %."
    )
    agreed = rank_correlation(losses.loss[said], -opinion.confidence[said])
    if math.isfinite(agreed):
        text += f" Rank correlation of the loss and 1−c: {agreed:.2f} (1: the same order)."
    if shares is not None:
        text += " The more of a field's pairs are really mismatched, the stronger its colour."
    description = f"{label}: pairs by p_noise and the method's last call. {text}"
    called = ("called\nclean", "called\nnoisy")
    chart = charts.fields(counts.reshape(2, 2), shares, description, columns=charts.BY_P_NOISE, rows=called)
    return Figure("Do the two opinions agree?", chart, text)


def _times(losses: PairLosses, opinion: PairOpinions, label: str) -> Figure:
    times, truth = opinion.times, losses.truth
    never = times == 0
    chart = charts.times_histogram(times, truth, f"{label}: how often {len(times):,} pairs were called noisy")
    text = f"Bars: how many pairs were called noisy so many times. {never.sum():,} never were, and are left out"
    key: tuple[tuple[str, str], ...] = (("bar unknown", "pairs"),)
    if truth is not None:
        text += f": {(never & truth).sum():,} of the {truth.sum():,} mismatched and "
        text += f"{(never & ~truth).sum():,} of the {(~truth).sum():,} matched"
        key = (("bar matched", "really matched"), ("bar mismatched", "really mismatched"))
    return Figure("How often was a pair called noisy?", chart, f"{text}.", key)
