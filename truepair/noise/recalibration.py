"""Makes p_noise a probability again: a rising curve from p_noise to the share of noisy pairs, fitted to labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.noise.binned import Floats, chunks

Vector = NDArray[np.float64]
Kind = Literal["platt", "isotonic"]

ENOUGH = 1000  # labels from which "auto" is isotonic: scikit-learn's documentation advises against it well below
CLIP = 1e-4  # p_noise and what becomes of it stay so far from 0 and 1: labels hardly tell more (ours)
PRIOR = 2.0  # standard deviation of Platt's slope about 1 and of its intercept about 0 (ours)
PER_GROUP, MOST_GROUPS = 20, 15  # labels a group of the calibration error, and groups at most (ours)


@dataclass(frozen=True)
class Recalibration:
    """A curve that never falls, from p_noise in [0, 1] to probabilities at least 1e-4 away from 0 and 1.

    kind: "platt": σ(slope·logit(p) + intercept). "isotonic": straight lines between the points (at, share), level
    beyond the first and the last. labelled: number of labels it was fitted to. Fields of the other kind: 1, 0, ().
    """

    kind: Kind
    labelled: int
    slope: float = 1.0
    intercept: float = 0.0
    at: tuple[float, ...] = ()
    share: tuple[float, ...] = ()

    def __call__(self, p: Floats) -> NDArray[np.float32]:
        """Recalibrated probabilities, float32 of the shape of `p`; NaN stays NaN."""
        result = np.empty(p.size, dtype=np.float32)
        for start, chunk in chunks(p):
            if self.kind == "platt":
                values = _sigmoid(self.slope * _logit(chunk) + self.intercept)
            else:
                values = np.interp(chunk, self.at, self.share)
            result[start : start + len(chunk)] = np.clip(values, CLIP, 1 - CLIP)
        return result.reshape(p.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tuples: goes through JSON and back by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recalibration:
        """The curve that `to_dict` described; lists are taken for tuples, as JSON writes them."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Gain:
    """What recalibration gains, by labels that it had not seen (cross-validation).

    before_ece, after_ece: calibration error, |share of noisy labels - mean probability| averaged over groups of
    labels of like p_noise, the same groups for both. chance_ece: what probabilities without any fault would be
    expected to show on as many labels; an error near it is no evidence of a fault.
    before_brier, after_brier: mean squared difference of probability and verdict; needs no groups, less is better.
    folds: of the cross-validation. groups: of the calibration errors.
    """

    before_ece: float
    after_ece: float
    chance_ece: float
    before_brier: float
    after_brier: float
    folds: int
    groups: int


def recalibrate(
    p_noise: Floats,
    noisy: NDArray[Any],
    weight: Floats | None = None,
    *,
    kind: Literal["auto", "platt", "isotonic"] = "auto",
) -> Recalibration:
    """The curve from p_noise (m,) to the share of noisy pairs that fits m labels `noisy` (m,) best.

    weight: rows of the table that each label stands for (m,), `rate.sample_weight`; those of weight 0 are left out,
    whatever their p_noise. None: all alike.
    kind: "auto" is isotonic from 1,000 labels on, else Platt's.

    Platt (1999): logistic regression on logit(p_noise), clipped at 1e-4. In place of his corrected targets a normal
    prior (ours) holds slope and intercept near 1 and 0, which is p_noise as it stands: a few labels change little, and
    separated ones, or those of one class alone, stay finite. A slope below 0 (labels that contradict p_noise) becomes
    0: the same probability for all.
    Isotonic: least squares among the curves that never fall. A block at the end without any noisy label, or without
    any clean one, is not certain: its k labels (effectively) say 1/(k+2) or 1 - 1/(k+2), Laplace's rule of
    succession, as far as the next block permits (ours).

    Raises UserError if the lengths differ, no label is left, or a p_noise or weight is none.
    """
    p, y, w = _checked(p_noise, noisy, weight)
    if _resolved(kind, len(p)) == "platt":
        slope, intercept = _platt(_logit(p), y, w)
        return Recalibration("platt", len(p), slope, intercept)
    at, share = _isotonic(p, y, w)
    return Recalibration("isotonic", len(p), at=at, share=share)


def gain(
    p_noise: Floats,
    noisy: NDArray[Any],
    weight: Floats | None = None,
    *,
    kind: Literal["auto", "platt", "isotonic"] = "auto",
    folds: int = 10,
    seed: int = 0,
) -> Gain:
    """How well p_noise and the recalibrated p_noise agree with the labels: arguments as for `recalibrate`.

    Each label is judged by a curve fitted to the labels of the other folds; a fold has its part of either class and
    of low and high p_noise. After's figures are so a little worse than what all labels together achieve, never
    flattered by labels seen. Groups have about 20 labels of neighbouring p_noise (at most 15 groups, equal p_noise
    never parted); they differ from the 15 bins of equal width of a known truth, which few labels leave near empty.
    With a single label there is nothing to judge by: after's figures are NaN, `folds` is 0.
    """
    p, y, w = _checked(p_noise, noisy, weight)
    count, chosen = min(folds, len(p)), _resolved(kind, len(p))
    after = np.full(len(p), np.nan)
    if count > 1:
        generator = np.random.Generator(np.random.Philox(seed))
        rounds = np.tile(np.arange(count), (-(-len(p) // count), 1))
        fold = np.empty(len(p), dtype=np.int64)
        fold[np.lexsort((p, y))] = generator.permuted(rounds, axis=1).ravel()[: len(p)]
        for k in range(count):
            rest, out = fold != k, fold == k
            after[out] = recalibrate(p[rest], y[rest], w[rest], kind=chosen)(p[out])
    group = _groups(p)
    part = np.bincount(group, w) / w.sum()

    def mean(values: Vector) -> Vector:
        return np.bincount(group, w * values) / np.bincount(group, w)

    chance = np.sqrt(np.bincount(group, w**2 * after * (1 - after)) * 2 / np.pi) / np.bincount(group, w)
    return Gain(
        before_ece=float(part @ np.abs(mean(y) - mean(p))),
        after_ece=float(part @ np.abs(mean(y) - mean(after))),
        chance_ece=float(part @ chance),  # mean distance of a normal variable from its mean: σ·√(2/π)
        before_brier=float(np.average((y - p) ** 2, weights=w)),
        after_brier=float(np.average((y - after) ** 2, weights=w)),
        folds=count if count > 1 else 0,
        groups=len(part),
    )


def _platt(z: Vector, y: Vector, w: Vector) -> tuple[float, float]:
    """Slope >= 0 and intercept of the likeliest σ(slope·z + intercept) under the prior, by Newton's method."""
    w = w * (w.sum() / (w @ w))  # the weights of as many equal labels as would be as telling (Kish's effective size)
    design = np.stack([z, np.ones_like(z)])
    start, precision = np.array([1.0, 0.0]), PRIOR**-2
    slope, intercept = _newton(design, y, w, start, precision)
    if slope < 0:  # the objective is convex: the best slope allowed is at the bound
        slope, intercept = 0.0, _newton(design[1:], y, w, start[1:], precision)[0]
    return float(slope), float(intercept)


def _newton(design: Vector, y: Vector, w: Vector, prior: Vector, precision: float) -> Vector:
    """Parameters (d,) that minimise the weighted logistic loss of design (d, m) plus ½·precision·|θ - prior|²."""

    def loss(theta: Vector) -> float:
        score = theta @ design
        return float(w @ (np.logaddexp(0.0, score) - y * score) + 0.5 * precision * np.sum((theta - prior) ** 2))

    theta, now = prior, loss(prior)
    for _ in range(100):
        share = _sigmoid(theta @ design)
        gradient = design @ (w * (share - y)) + precision * (theta - prior)
        curvature = (design * (w * share * (1 - share))) @ design.T + precision * np.eye(len(theta))
        step = np.linalg.solve(curvature, gradient)
        while (after := loss(theta - step)) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        if after >= now:  # no step improves it in floating point: this is the minimum
            break
        theta, now = theta - step, after
    return theta


def _isotonic(p: Vector, y: Vector, w: Vector) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ends of the blocks of the isotonic regression and their shares, those of the outer blocks softened."""
    at, tied = np.unique(p, return_inverse=True)
    weights, sums = np.bincount(tied, w).tolist(), np.bincount(tied, w * y).tolist()
    blocks: list[tuple[float, float, int]] = []  # weight, weight of noisy labels, place of the first p_noise
    for first, (weight, noisy) in enumerate(zip(weights, sums, strict=True)):
        while blocks and blocks[-1][1] * weight >= noisy * blocks[-1][0]:  # the block before has no smaller share
            before, noisy_before, first = blocks.pop()
            weight, noisy = weight + before, noisy + noisy_before
        blocks.append((weight, noisy, first))
    total, noisy_weight, firsts = (np.array(column) for column in zip(*blocks, strict=True))
    share = np.clip(noisy_weight / total, 0.0, 1.0)
    effective = total**2 / np.add.reduceat(np.bincount(tied, w**2), firsts)
    doubt = 1 / (effective + 2)
    below, above = np.append(0.0, share[:-1])[-1], np.append(share[1:], 1.0)[0]  # the outer blocks' neighbours
    if share[0] == 0:
        share[0] = min(doubt[0], above)
    if share[-1] == 1:
        share[-1] = max(1 - doubt[-1], below)
    lasts = np.append(firsts[1:], len(at)) - 1
    knots = np.stack([firsts, lasts], axis=1).ravel()
    kept = np.append(True, knots[1:] != knots[:-1])  # a block of one p_noise begins and ends at once
    return tuple(at[knots[kept]].tolist()), tuple(np.repeat(share, 2)[kept].tolist())


def _groups(p: Vector) -> NDArray[np.int64]:
    """Group of each label (m,), from 0, ascending with p: about PER_GROUP labels in each, equal p together."""
    wanted = min(max(len(p) // PER_GROUP, 1), MOST_GROUPS)
    _, tied, counts = np.unique(p, return_inverse=True, return_counts=True)
    number = ((np.cumsum(counts) - counts / 2) / len(p) * wanted).astype(np.int64)
    return np.unique(number, return_inverse=True)[1][tied]


def _checked(p_noise: Floats, noisy: NDArray[Any], weight: Floats | None) -> tuple[Vector, Vector, Vector]:
    """p_noise, verdicts and weights of the labels that weigh anything, as float64."""
    w = np.ones(len(p_noise)) if weight is None else weight.astype(np.float64)
    if not p_noise.shape == noisy.shape == w.shape or p_noise.ndim != 1:
        raise UserError(
            f"p_noise {p_noise.shape}, labels {noisy.shape}, weights {w.shape}: one number a label is needed"
        )
    if not (np.isfinite(w) & (w >= 0)).all():
        raise UserError("the weight of a label is negative or no number: it must be the rows the label stands for")
    p, y, w = p_noise[w > 0].astype(np.float64), noisy[w > 0].astype(np.float64), w[w > 0]
    if not len(p):
        raise UserError("no label to recalibrate with: label some pairs that have a p_noise")
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError("recalibration needs probabilities: a labelled pair has a p_noise outside [0, 1], or none")
    return p, y, w


def _resolved(kind: Literal["auto", "platt", "isotonic"], labels: int) -> Kind:
    if kind == "auto":
        return "isotonic" if labels >= ENOUGH else "platt"
    return kind


def _logit(p: Vector) -> Vector:
    clipped = np.clip(p, CLIP, 1 - CLIP)
    logit: Vector = np.log(clipped) - np.log1p(-clipped)
    return logit


def _sigmoid(z: Vector) -> Vector:
    probability: Vector = 1 / (1 + np.exp(np.clip(-z, -700.0, 700.0)))
    return probability
