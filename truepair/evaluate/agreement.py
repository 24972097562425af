"""Do two opinions on how noisy the pairs are agree?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DOUBTED = 0.5  # the probability of noise from which on a pair is doubted


@dataclass(frozen=True)
class Agreement:
    """Two probabilities of noise, "first" and "second", of the same n pairs.

    rank_correlation: Spearman's, NaN where one of them is constant.
    both, first, second, neither: pairs doubted (probability >= 1/2) by both, by one alone, by neither.
    """

    rank_correlation: float
    both: int
    first: int
    second: int
    neither: int
    n: int


def agreement(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Agreement:
    """Of two arrays (N,) of probabilities of noise; pairs that are NaN in one of them are left out."""
    known = ~(np.isnan(first) | np.isnan(second))
    first, second = first[known], second[known]
    one, other = first >= DOUBTED, second >= DOUBTED
    return Agreement(
        rank_correlation=rank_correlation(first, second),
        both=int((one & other).sum()),
        first=int((one & ~other).sum()),
        second=int((~one & other).sum()),
        neither=int((~one & ~other).sum()),
        n=int(known.sum()),
    )


def rank_correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Spearman's rank correlation of two arrays (N,), ties with their mean rank; NaN where one is constant or empty."""
    ranks = [_ranks(first), _ranks(second)]
    centred = [rank - rank.mean() if len(rank) else rank for rank in ranks]
    spread = [float(rank @ rank) for rank in centred]
    return float(centred[0] @ centred[1]) / float(np.sqrt(spread[0] * spread[1])) if all(spread) else float("nan")


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(N,) places in ascending order, of equal values their mean place."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
