"""Losses of any number of pairs as sums per bin, which add up across ranks: what the mixture is fitted from.

Every bin keeps the exact mean and variance of its losses, so nothing of use is lost by binning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

CHUNK = 1 << 16  # losses taken at a time: the working set stays in the cache whatever the number of pairs


@dataclass(frozen=True)
class Histogram:
    """Sums per bin of the losses of some pairs; z = (loss - low) / (high - low), c the centre of the bin z falls in.

    counts: (bins,) float64, number of losses.
    offsets: (bins,) float64, sum of z - c.
    squares: (bins,) float64, sum of (z - c)².
    low, high: range in the losses' units; low == high if all are equal, low > high if none is finite.
    clipped: losses outside the range, infinities included, counted in the bin at the nearer end.
    unseen: NaN losses, counted nowhere else.
    """

    counts: Vector
    offsets: Vector
    squares: Vector
    low: float
    high: float
    clipped: int
    unseen: int

    def __add__(self, other: Histogram) -> Histogram:
        """Histogram of both sets of pairs. Raises ValueError unless range and number of bins agree."""
        if (self.low, self.high, len(self.counts)) != (other.low, other.high, len(other.counts)):
            raise ValueError("only histograms of the same range and number of bins add up; agree on finite_range first")
        return self.with_sums(self.sums() + other.sums())

    def sums(self) -> Vector:
        """All that adds up across ranks in one vector (3·bins + 2,) float64: one all-reduce(sum) merges them."""
        return np.concatenate([self.counts, self.offsets, self.squares, [self.clipped, self.unseen]])

    def with_sums(self, sums: Vector) -> Histogram:
        """The histogram of the same range that has these `sums` (3·bins + 2,)."""
        counts, offsets, squares = sums[:-2].reshape(3, -1)
        return Histogram(counts, offsets, squares, self.low, self.high, int(sums[-2]), int(sums[-1]))


def finite_range(losses: Floats) -> tuple[float, float]:
    """Least and greatest finite loss; (inf, -inf) if there is none, which min and max over ranks pass over."""
    low, high = math.inf, -math.inf
    for _, chunk in chunks(losses):
        finite = np.isfinite(chunk)
        low = min(low, float(chunk.min(where=finite, initial=math.inf)))
        high = max(high, float(chunk.max(where=finite, initial=-math.inf)))
    return low, high


def histogram(losses: Floats, low: float, high: float, bins: int = 2048) -> Histogram:
    """Histogram of losses (any shape) over [low, high], the `finite_range` of the losses of all ranks.

    Raises ValueError for a NaN bound or a range too wide for a float64. With low > high (no finite loss anywhere) it
    is empty.
    """
    if math.isnan(high - low) or high - low == math.inf:
        raise ValueError(f"no histogram over the range [{low}, {high}]")
    sums = np.zeros((3, bins))
    clipped = unseen = 0
    span = (high - low) or 1.0
    for _, chunk in chunks(losses):
        seen = chunk[~np.isnan(chunk)]
        unseen += len(chunk) - len(seen)
        if low > high:
            clipped += len(seen)
            continue
        z = (seen - low) / span
        clipped += int(np.count_nonzero((z < 0) | (z > 1)))
        np.clip(z, 0.0, 1.0, out=z)
        index = np.minimum((z * bins).astype(np.intp), bins - 1)
        offset = z - (index + 0.5) / bins
        sums[0] += np.bincount(index, minlength=bins)
        sums[1] += np.bincount(index, weights=offset, minlength=bins)
        sums[2] += np.bincount(index, weights=offset**2, minlength=bins)
    return Histogram(sums[0], sums[1], sums[2], low, high, clipped, unseen)


def chunks(losses: Floats) -> Iterator[tuple[int, Vector]]:
    """Start and float64 copy of successive pieces of the flattened losses."""
    flat = losses.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK].astype(np.float64)
