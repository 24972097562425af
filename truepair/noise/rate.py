"""The share of noisy pairs in a whole table, estimated from a person's labels of a small stratified sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.noise.beta import beta_quantile
from truepair.noise.binned import Floats, chunks
from truepair.noise.labels import Labels

Rows = NDArray[np.int64]
Vector = NDArray[np.float64]

BINS = 1000  # of p_noise, for the bounds of strata
EVEN_PART = 4  # one label in so many is spread evenly over the strata (ours)
FEWEST = 1e-3  # a + b of the beta distribution, where one or two labels leave none
DISTRUST = 0.5  # weight of the worst variance against the one p_noise promises (ours)


@dataclass(frozen=True)
class NoiseRate:
    """Estimated share of noisy pairs among those with a p_noise, and its confidence interval.

    rate, low, high: in [0, 1], low <= rate <= high. level: of the interval, two-sided.
    labelled: labels it rests on (keep or mismatch). unsure: labels left out of it.
    if_unsure_clean, if_unsure_noisy: the rate, were all the unsure pairs clean, or all noisy.
    unlabelled: share of the pairs in strata without any label, of which the interval assumes nothing.
    """

    rate: float
    low: float
    high: float
    level: float
    labelled: int
    unsure: int
    if_unsure_clean: float
    if_unsure_noisy: float
    unlabelled: float


def strata(p_noise: Floats, count: int = 10) -> Rows:
    """Stratum of each row, (n,) int64 from 0, ascending with p_noise (n,); -1 where p_noise is NaN.

    At most `count` strata, none empty. Equal p_noise, and all within a thousandth of [0, 1], share a stratum. Bounds
    by the cumulative square root of frequency (Dalenius & Hodges 1959): quantiles would cut the many pairs of
    p_noise ≈ 0 into pieces that do not differ, equal widths would leave strata of almost no pairs.
    Raises UserError if a p_noise lies outside [0, 1].
    """
    bins = np.empty(p_noise.size, dtype=np.int16)
    for start, chunk in chunks(p_noise):
        missing = np.isnan(chunk)
        if ((chunk < 0) | (chunk > 1)).any():
            raise UserError("strata need probabilities: a p_noise lies outside [0, 1]")
        inside = np.minimum(np.where(missing, 0.0, chunk) * BINS, BINS - 1)
        bins[start : start + len(chunk)] = np.where(missing, BINS, inside)
    frequency = np.bincount(bins, minlength=BINS + 1)[:BINS]
    root = np.sqrt(frequency)
    middle = np.cumsum(root) - root / 2
    wanted = np.minimum(middle / max(root.sum(), 1.0) * count, count - 1).astype(np.int64)
    number = np.searchsorted(np.unique(wanted[frequency > 0]), wanted)
    stratum: Rows = np.append(number, -1)[bins]
    return stratum


def draw_sample(stratum: NDArray[Any], size: int, seed: int = 0, *, p_noise: Floats | None = None) -> Rows:
    """Rows to label, ascending: `size` of them, or all that have a stratum (>= 0), if those are fewer.

    A quarter is spread evenly over the strata: recalibration needs labels at every p_noise. The rest follows Neyman's
    rule, size of stratum times standard deviation, with half the variance p(1-p) that the stratum's mean `p_noise`
    promises and half the greatest possible, ¼, since p_noise may be wrong; without p_noise all deviations are alike.
    Within a stratum every row has the same chance. Show the rows in another order than this one, for a person who
    stops half-way has then judged a random part.
    """
    code = stratum + 1  # 0: no stratum
    sizes = np.bincount(code)[1:]
    deviation = np.ones(len(sizes))
    if p_noise is not None:
        mean = np.bincount(code, weights=p_noise)[1:] / np.maximum(sizes, 1)
        deviation = np.sqrt((1 - DISTRUST) * mean * (1 - mean) + DISTRUST / 4)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = [
        np.flatnonzero(stratum == h)[generator.choice(sizes[h], size=take, replace=False, shuffle=False)]
        for h, take in enumerate(_allocation(sizes, deviation, size))
    ]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))


def sample_weight(stratum: NDArray[Any], labels: Labels) -> Vector:
    """How many rows each label stands for, (m,): rows of its stratum by labels in it; 0 without a stratum.

    With these weights a fit to the labels is one to the table, whatever the allocation of the sample.
    """
    sizes = np.bincount(stratum + 1)[1:]
    each = sizes / np.maximum(_per_stratum(stratum, labels.rows, len(sizes)), 1)
    weight: Vector = np.append(each, 0.0)[stratum[labels.rows]]  # stratum -1 is the last place
    return weight


def noise_rate(stratum: NDArray[Any], labels: Labels, *, level: float = 0.95) -> NoiseRate:
    """Share of noisy pairs among the rows with a stratum (>= 0), from labels of a stratified random sample.

    The labelled rows of a stratum are taken for a random sample of it: give `labels.among(drawn)` where a person has
    labelled chosen pairs besides. Rows without a stratum count nowhere. Rate: the strata's shares of noisy labels
    weighted by their sizes; a stratum without labels takes the share that lies between its neighbours'. Unsure
    labels are taken for missing at random within their stratum. Interval: `stratified_interval`.

    Raises UserError if no label says keep or mismatch, or a label lies outside the rows of `stratum`.
    """
    sizes = np.bincount(stratum + 1)[1:]
    for rows in (labels.rows, labels.unsure):
        if len(rows) and rows[-1] >= len(stratum):
            raise UserError(f"row {rows[-1]} is labelled, but there are only {len(stratum)} rows")
    labelled = _per_stratum(stratum, labels.rows, len(sizes))
    noisy = _per_stratum(stratum, labels.rows[labels.noisy], len(sizes))
    unsure = _per_stratum(stratum, labels.unsure, len(sizes))
    if not labelled.any():
        raise UserError("no pair of the sample is labelled keep or mismatch: the noise rate needs some labels")
    rate = _rate(sizes, labelled, noisy)
    low, high = stratified_interval(sizes, labelled, noisy, level=level)
    return NoiseRate(
        rate=rate,
        low=min(float(low), rate),
        high=max(float(high), rate),
        level=level,
        labelled=int(labelled.sum()),
        unsure=int(unsure.sum()),
        if_unsure_clean=_rate(sizes, labelled + unsure, noisy),
        if_unsure_noisy=_rate(sizes, labelled + unsure, noisy + unsure),
        unlabelled=float(sizes[labelled == 0].sum() / sizes.sum()),
    )


def stratified_interval(
    sizes: NDArray[Any], labelled: NDArray[Any], noisy: NDArray[Any], *, level: float = 0.95
) -> tuple[Vector, Vector]:
    """Confidence limits (...) of the noise rate of strata of `sizes` (k,), `labelled` (k,) rows of each drawn at random
    of which `noisy` (..., k) are.

    Each limit is the quantile of a beta distribution with the mean and variance of the estimate after half a further
    label against it, in the stratum where one label weighs most. That is Fay & Feuer's interval for weighted sums of
    rare events (1997) in its mid-P form (Fay & Kim 2017), with the beta in place of the gamma distribution, since a
    rate ends at 1, and the correction for finite strata (both ours): a stratum labelled to the last row adds no
    doubt, and one without labels anything from none to all of its rows. Intervals made of the strata's own (Wilson's,
    Jeffreys') lose their level at low rates; this one did in no simulated table (docs/calibration.md).
    """
    seen = labelled > 0
    share = sizes / sizes.sum()
    known = share[seen].sum()
    left = 1 - labelled[seen] / sizes[seen]  # part of each stratum that nobody looked at
    n, x = labelled[seen], noisy[..., seen]
    low = 1 - _upper(share[seen] / known, left, n, n - x, level)
    high = _upper(share[seen] / known, left, n, x, level)
    return known * low, known * high + (1 - known)


def _upper(share: Vector, left: Vector, n: Vector, x: Vector, level: float) -> Vector:
    """Upper limit (...) of Σ share·rate, where x (..., k) of n (k,) rows are of a kind and a part `left` is unseen."""
    rate = x / n
    event = (share * left * (1 - rate) / n).max(-1)
    mean = np.asarray((share * rate).sum(-1) + event / 2)
    variance = (share**2 * left * rate * (1 - rate) / np.maximum(n - 1, 1)).sum(-1) + event**2 / 2
    limit = np.asarray(np.minimum(mean, 1.0))
    open_ = (variance > 0) & (mean < 1)
    m, v = mean[open_], np.asarray(variance)[open_]
    total = np.maximum(m * (1 - m) / v - 1, FEWEST)
    limit[open_] = beta_quantile((1 + level) / 2, m * total, (1 - m) * total)
    return limit


def _rate(sizes: NDArray[Any], labelled: NDArray[Any], noisy: NDArray[Any]) -> float:
    seen = np.flatnonzero(labelled)
    shares = np.interp(np.arange(len(sizes)), seen, noisy[seen] / labelled[seen])
    return float(np.average(shares, weights=sizes))


def _per_stratum(stratum: NDArray[Any], rows: Rows, count: int) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = np.bincount(stratum[rows] + 1, minlength=count + 1)[1:]
    return numbers


def _allocation(sizes: NDArray[Any], deviation: Vector, total: int) -> NDArray[np.int64]:
    """How many of `total` labels each stratum gets: whole numbers, none above the stratum's size."""
    used = int(np.count_nonzero(sizes))
    even = max(total // (EVEN_PART * max(used, 1)), int(total >= used))
    share = np.minimum(sizes, even).astype(np.float64)
    wanted = sizes * deviation
    while (free := share < sizes).any() and (rest := total - share.sum()) > 1e-9:
        share[free] = np.minimum(share[free] + rest * wanted[free] / wanted[free].sum(), sizes[free])
    whole = np.floor(share + 1e-9).astype(np.int64)
    missing = min(total, int(sizes.sum())) - int(whole.sum())
    whole[np.argsort(whole - share, kind="stable")[:missing]] += 1  # the largest remainders
    allocation: NDArray[np.int64] = whole
    return allocation
