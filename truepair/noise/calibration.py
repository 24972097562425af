"""How good a noise detector is: figures of a score per pair against the known truth.

The four figures are those of the noise protocol: area under the ROC curve and average precision (equal to
scikit-learn's, ties included), expected calibration error, and the precision at the true rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError

Vector = NDArray[np.float64]

FAR = 0.1  # between the share expected to be mismatched and the true one, from which on the level is not to be trusted


def far_off(expected: float, true: float) -> bool:
    """Whether p_noise, whose mean is `expected`, tells wrongly how many pairs are mismatched; both are shares."""
    return abs(expected - true) > FAR


@dataclass(frozen=True)
class DetectionFigures:
    """Figures of n pairs of which the fraction `rate` is truly noisy; NaN where a figure is undefined.

    auroc: chance that a noisy pair scores above a clean one, a tie counting half. NaN if one class is missing.
    average_precision: precision averaged over the recall steps of all distinct scores. NaN if one class is missing.
    ece: expected calibration error, 15 bins of equal width. NaN if there is no pair or a score lies outside [0, 1]
        (not a probability).
    precision_at_rate: share of noisy pairs among the k most suspicious, k the number of truly noisy ones; pairs tied
        at the k-th place count in proportion. NaN if one class is missing.
    """

    auroc: float
    average_precision: float
    ece: float
    precision_at_rate: float
    rate: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram over bins of equal width in [0, 1]; a score on an inner edge belongs to the upper bin.

    edges: (bins + 1,). counts: (bins,) int64. confidence: (bins,) mean score, accuracy: (bins,) share of noisy pairs;
    NaN in empty bins.
    """

    edges: Vector
    counts: NDArray[np.int64]
    confidence: Vector
    accuracy: Vector

    def error(self) -> float:
        """Expected calibration error: |accuracy - confidence| averaged over the pairs; NaN without pairs."""
        used = self.counts > 0
        if not used.any():
            return math.nan
        return float(np.average(np.abs(self.accuracy - self.confidence)[used], weights=self.counts[used]))


def detection(score: NDArray[Any], truth: NDArray[Any]) -> DetectionFigures:
    """Figures of `score` (N,), higher = more suspicious, against `truth` (N,), True or 1 = noisy.

    Raises UserError if the lengths differ, a score is NaN (leave rows without a score out first) or a truth is
    neither boolean nor 0 or 1.
    """
    score, noisy = _checked(score, truth)
    n, positives = len(noisy), int(noisy.sum())
    probability = n > 0 and score.min() >= 0 and score.max() <= 1
    ece = reliability(score, noisy).error() if probability else math.nan
    rate = positives / n if n else math.nan
    if positives in (0, n):
        return DetectionFigures(math.nan, math.nan, ece, math.nan, rate, n)

    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), n - 1)  # last place of each run of equal scores
    hits = np.cumsum(noisy[order])[ends].astype(np.float64)  # noisy pairs down to and with each distinct score
    false = ends + 1 - hits
    recall, precision = hits / positives, hits / (ends + 1)
    auroc = np.trapezoid(np.append(0.0, recall), np.append(0.0, false / (n - positives)))
    average_precision = np.diff(recall, prepend=0.0) @ precision
    at_rate = np.interp(positives, np.append(0, ends + 1), np.append(0.0, hits)) / positives
    return DetectionFigures(float(auroc), float(average_precision), ece, float(at_rate), rate, n)


def reliability(score: NDArray[Any], truth: NDArray[Any], bins: int = 15) -> Reliability:
    """Reliability diagram of probabilities `score` (N,) in [0, 1] against `truth` (N,).

    Raises UserError as `detection` does, and if a score lies outside [0, 1].
    """
    score, noisy = _checked(score, truth)
    if len(score) and (score.min() < 0 or score.max() > 1):
        raise UserError("a reliability diagram needs probabilities: a noise score lies outside [0, 1]")
    index = np.minimum((score * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        confidence = np.bincount(index, weights=score, minlength=bins) / counts
        accuracy = np.bincount(index, weights=noisy, minlength=bins) / counts
    return Reliability(np.linspace(0.0, 1.0, bins + 1), counts, confidence, accuracy)


def _checked(score: NDArray[Any], truth: NDArray[Any]) -> tuple[Vector, NDArray[np.bool_]]:
    if score.shape != truth.shape or score.ndim != 1:
        raise UserError(f"noise scores {score.shape} and truth {truth.shape}: both must hold one number a pair")
    values = score.astype(np.float64)
    missing = int(np.isnan(values).sum())
    if missing:
        raise UserError(f"{missing} of {len(values)} noise scores are NaN: leave the rows without a score out")
    if truth.dtype.kind not in "biuf":
        raise UserError(f"the truth about noise holds {truth.dtype}: it must be boolean, or 1 (noisy) and 0 (clean)")
    wrong = np.flatnonzero((truth != 0) & (truth != 1))
    if len(wrong):
        raise UserError(
            f"the truth about noise is {truth[wrong[0]]} in row {wrong[0]} of the {len(truth)} rows judged: "
            "it must be boolean, or 1 (noisy) and 0 (clean); leave rows of unknown truth out"
        )
    return values, truth.astype(np.bool_)
