"""Tells noisy from clean pairs: a two-component Gaussian mixture over per-pair losses, fitted from a histogram.

A network learns matched pairs first, so for a while the losses of mismatched pairs form a second, higher mode (the
memorisation effect). The expectation-maximisation here never sees the losses themselves, only sums per bin: an
iteration costs the same for any number of pairs.

Settings and where they come from: losses min-max scaled to [0, 1] as in the code shared by the noisy-correspondence
literature. That code stops after 10 iterations (or a change below 1e-2) and adds 5e-4 to the variances in each. We
run to convergence, where 5e-4 biases the fit (modes 1.5 standard deviations apart merge into one), and add 1e-6
(ours). The starts, the monotone posterior and the treatment of degenerate fits are ours too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truepair.noise.binned import Floats, Histogram, Vector, chunks, finite_range, histogram

Pair = tuple[float, float]

FEWEST = 32  # losses below which nothing is fitted (ours)
CLOSEST_MEANS = 1e-3  # scaled; closer ones do not tell noisy from clean (ours)
LEAST_WEIGHT = 1e-2  # a lighter component is a few outliers, or nothing (ours)
START_QUANTILES = (0.5, 0.9)  # cuts tried besides the best two-means cut (ours)


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians over the losses, in the losses' own units: component 0 the lower (clean), 1 the higher (noisy).

    log_likelihood: mean natural log density of a loss.
    iterations, converged: of the start that was kept.
    degenerate: why the fit says nothing about noise, "" if it is sound. The posterior of a degenerate fit is 0
    everywhere.
    """

    weights: Pair
    means: Pair
    stds: Pair
    low: float
    high: float
    log_likelihood: float
    iterations: int
    converged: bool
    degenerate: str

    def posterior(self, losses: Floats) -> NDArray[np.float32]:
        """Probability that each loss is of the noisy component, float32 of their shape; 0 for NaN (never seen).

        It never decreases with the loss. Where two Gaussians differ in width the wider one wins at both ends, and a
        very well fitted pair would look noisy; beyond the turning point of the log-odds (a parabola, always outside
        the interval of the two means) we keep the value of the turning point. Losses outside [low, high], infinities
        included, take the value at that end. Both are ours.
        """
        probability = np.zeros(losses.size, dtype=np.float32)
        if self.degenerate:
            return probability.reshape(losses.shape)
        span = self.high - self.low
        curve = _log_odds(self.weights, _scaled(self.means, self.low, span), _scaled(self.stds, 0.0, span))
        first, last = _rising(curve)
        for start, chunk in chunks(losses):
            z = np.clip((chunk - self.low) / span, first, last)
            p = _sigmoid(curve, z)
            probability[start : start + len(chunk)] = np.where(np.isnan(z), 0.0, p)
        return probability.reshape(losses.shape)

    def density(self, losses: Floats) -> Vector:
        """Density of each component times its weight, (2, N) per unit of loss, at the given losses (N,).

        The sum over axis 0 is the mixture's. Zero everywhere if all losses were equal or there were too few.
        """
        if not all(self.stds):
            return np.zeros((2, len(losses)))
        weights, means, stds = (np.array(pair)[:, None] for pair in (self.weights, self.means, self.stds))
        z = (np.asarray(losses, dtype=np.float64) - means) / stds
        density: Vector = weights * np.exp(-0.5 * z**2) / (stds * math.sqrt(2 * math.pi))
        return density

    def to_dict(self) -> dict[str, Any]:
        """Plain finite numbers, strings and tuples: goes through JSON and back by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mixture:
        """The mixture that `to_dict` described; lists are taken for tuples, as JSON writes them."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


def fit(histogram: Histogram, *, max_iter: int = 10_000, tol: float = 1e-8, reg: float = 1e-6) -> Mixture:
    """Fit the mixture to convergence from several deterministic starts and keep the likeliest sound one.

    max_iter: iterations of each start. tol: greatest change of any weight, mean or standard deviation, in scaled
    units, that counts as converged (ours). reg: added to both variances in scaled units (ours; 5e-4 in the
    literature's shared code).
    Never fails: what cannot be fitted or means nothing has its reason in `degenerate`.
    """
    low, high, total = histogram.low, histogram.high, float(histogram.counts.sum())
    used = histogram.counts > 0
    if total < FEWEST or low >= high or np.count_nonzero(used) < 2:
        at = low if low <= high else 0.0
        reason = f"fewer than {FEWEST} losses" if total < FEWEST else "all finite losses are equal"
        return Mixture((1.0, 0.0), (at, at), (0.0, 0.0), at, at, 0.0, 0, True, reason)

    counts = histogram.counts[used]
    offset = histogram.offsets[used] / counts
    z = (np.flatnonzero(used) + 0.5) / len(used) + offset
    within = np.maximum(histogram.squares[used] / counts - offset**2, 0.0)
    # What each of the K occupied bins adds to weight, Σz and Σz² of a component, (3, K).
    moments = np.stack([counts, counts * z, counts * (z**2 + within)]) / total

    fits = [_maximise(moments, z, cut, max_iter, tol, reg) for cut in _cuts(moments)]
    best = max(fits, key=lambda fitted: (not _unsound(fitted), fitted.log_likelihood))
    span = high - low
    return Mixture(
        weights=best.weights,
        means=(low + span * best.means[0], low + span * best.means[1]),
        stds=(span * best.stds[0], span * best.stds[1]),
        low=low,
        high=high,
        log_likelihood=best.log_likelihood - math.log(span),
        iterations=best.iterations,
        converged=best.converged,
        degenerate=_unsound(best),
    )


def fit_losses(losses: Floats) -> Mixture:
    """Range, histogram and fit of the losses of one process (any shape, NaN = never seen)."""
    return fit(histogram(losses, *finite_range(losses)))


@dataclass(frozen=True)
class _Fitted:
    weights: Pair
    means: Pair
    stds: Pair
    log_likelihood: float
    iterations: int
    converged: bool


def _unsound(fitted: _Fitted) -> str:
    """Why a fit in scaled units says nothing about noise, "" if it does."""
    if fitted.means[1] - fitted.means[0] < CLOSEST_MEANS:
        return f"means closer than {CLOSEST_MEANS} of the range"
    if min(fitted.weights) < LEAST_WEIGHT:
        return f"a component weighs less than {LEAST_WEIGHT}"
    return ""


def _maximise(moments: Vector, z: Vector, cut: int, max_iter: int, tol: float, reg: float) -> _Fitted:
    """Expectation-maximisation over K bins at z (K,), scaled; at first the bins from `cut` on are the noisy ones."""
    every = moments.sum(axis=1)  # (3,)
    noisy = (np.arange(len(z)) >= cut).astype(np.float64)
    previous = np.full(6, np.inf)
    iteration, converged = 0, False
    while True:
        high = moments @ noisy  # (3,) weight, Σz, Σz² of the noisy component; the clean one has the rest
        sums = np.maximum(np.stack([every - high, high], axis=1), 0.0)
        weight = np.maximum(sums[0], 1e-12)  # an emptied component divides nothing by zero; it is degenerate later
        mean = sums[1] / weight
        std = np.sqrt(np.maximum(sums[2] / weight - mean**2, 0.0) + reg)
        current = np.concatenate([weight, mean, std])
        converged = bool(np.abs(current - previous).max() < tol)
        if converged or iteration == max_iter:
            break
        previous, iteration = current, iteration + 1
        noisy = _sigmoid(_log_odds(_pair(weight), _pair(mean), _pair(std)), z)
    if mean[0] > mean[1]:
        weight, mean, std = weight[::-1], mean[::-1], std[::-1]
    logs = np.log(weight / std)[:, None] - 0.5 * ((z - mean[:, None]) / std[:, None]) ** 2 - 0.5 * math.log(2 * math.pi)
    likelihood = float(moments[0] @ np.logaddexp(logs[0], logs[1]))
    return _Fitted(_pair(weight), _pair(mean), _pair(std), likelihood, iteration, converged)


def _cuts(moments: Vector) -> list[int]:
    """Where the starts divide K >= 2 bins in two: at the best two-means cut (Otsu's) and at quantiles, each once."""
    below = np.cumsum(moments, axis=1)
    weight, total = below[0, :-1], below[:, -1]
    between = (total[1] * weight - below[1, :-1] * total[0]) ** 2 / (weight * (total[0] - weight))
    cuts = [int(np.argmax(between)) + 1, *(int(np.searchsorted(below[0], q)) + 1 for q in START_QUANTILES)]
    return sorted({min(cut, moments.shape[1] - 1) for cut in cuts})


def _log_odds(weights: Pair, means: Pair, stds: Pair) -> tuple[float, float, float]:
    """Coefficients (a, b, c) of log p(noisy | z) - log p(clean | z) = a z² + b z + c."""
    inverse = 1 / stds[0] ** 2, 1 / stds[1] ** 2
    a = 0.5 * (inverse[0] - inverse[1])
    b = means[1] * inverse[1] - means[0] * inverse[0]
    c = 0.5 * (means[0] ** 2 * inverse[0] - means[1] ** 2 * inverse[1])
    return a, b, c + math.log(weights[1] / weights[0]) + math.log(stds[0] / stds[1])


def _sigmoid(curve: tuple[float, float, float], z: Vector) -> Vector:
    """Logistic function of a z² + b z + c; bounded against overflow."""
    a, b, c = curve
    probability: Vector = 1 / (1 + np.exp(np.clip(-((a * z + b) * z + c), -700.0, 700.0)))
    return probability


def _rising(curve: tuple[float, float, float]) -> Pair:
    """The part of [0, 1] on which a z² + b z + c does not fall."""
    a, b, _ = curve
    turn = -b / (2 * a) if a else -math.inf
    if a < 0:
        return 0.0, min(1.0, turn)
    return max(0.0, turn), 1.0


def _scaled(values: Pair, low: float, span: float) -> Pair:
    return (values[0] - low) / span, (values[1] - low) / span


def _pair(values: Vector) -> Pair:
    return float(values[0]), float(values[1])
