"""Is a right key among the k nearest of a query? Answered tile by tile, for a million queries and a million keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CPU_TILE = (512, 4096)  # queries, keys: 8 MB of scores, about a core's cache
CUDA_TILE = (4096, 32_768)  # 512 MB of scores, so that launching kernels costs little
TIE = 1e-6  # cosines closer than this are equal: float32 matrix products of unit rows are no more exact (ours)


@dataclass(frozen=True)
class Positives:
    """Which keys are right for each of n queries, as compressed sparse rows.

    indptr: (n + 1,) int64; query i owns indices[indptr[i] : indptr[i + 1]], at least one.
    indices: int64, key numbers, without repetition within a query.
    """

    indptr: Tensor
    indices: Tensor


def positives(queries: npt.NDArray[np.int64], keys: npt.NDArray[np.int64], n: int) -> Positives:
    """From matching (query, key) pairs in any order, repetitions allowed; `n` queries."""
    pairs = np.unique(np.stack([queries, keys], axis=1), axis=0) if len(queries) else np.zeros((0, 2), np.int64)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=n))])
    return Positives(torch.from_numpy(indptr.astype(np.int64)), torch.from_numpy(pairs[:, 1].copy()))


def one_positive_each(keys: Tensor) -> Positives:
    """Query i has the single right key keys[i]; keys: (n,) int64."""
    return Positives(torch.arange(len(keys) + 1), keys)


def probability_of_hit(
    queries: Tensor, keys: Tensor, right: Positives, ks: Sequence[int], *, tile: tuple[int, int] | None = None
) -> Tensor:
    """(len(ks), n) float64 on the CPU: is at least one right key among the k nearest keys of each query?

    queries (n, D), keys (m, D): float32 unit rows, on the device that shall compute. `tile`: queries and keys compared
    at a time, all the (queries x keys) memory there is; by default what suits the device.
    Without ties the answer is 0 or 1. Keys whose cosine lies within `TIE` of the best right key's have no order: the
    answer is then the probability of a hit in a random order, so that equal features score exactly what guessing does.
    A query with NaN never hits.

    Raises ValueError where a query has no right key.
    """
    if bool((right.indptr.diff() < 1).any()):
        raise ValueError("a query without a right key has no recall; leave it out")
    height, width = tile or (CUDA_TILE if queries.is_cuda else CPU_TILE)
    above = torch.empty(len(queries), dtype=torch.int64)
    tied, tied_right = torch.empty_like(above), torch.empty_like(above)
    for start in range(0, len(queries), height):
        part = slice(start, start + height)
        counts = _count(queries[part], keys, _rows(right, start, height), width)
        above[part], tied[part], tied_right[part] = (count.cpu() for count in counts)
    return hits(above, tied, tied_right, ks)


def _rows(right: Positives, start: int, count: int) -> Positives:
    edges = right.indptr[start : start + count + 1]
    return Positives(edges - edges[0], right.indices[int(edges[0]) : int(edges[-1])])


def _count(queries: Tensor, keys: Tensor, right: Positives, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per query (b,): wrong keys above the best right key, wrong keys tied with it, right keys tied with it or it."""
    b = len(queries)
    owner = torch.repeat_interleave(torch.arange(b), right.indptr.diff()).to(queries.device)
    index = right.indices.to(queries.device)
    pieces = zip(torch.split(owner, width), torch.split(index, width), strict=True)
    cosine = torch.cat([(queries[o] * keys[i]).sum(1) for o, i in pieces])
    best = torch.full((b,), -torch.inf, device=queries.device).scatter_reduce(0, owner, cosine, "amax")
    tied_right = torch.zeros(b, dtype=torch.int64, device=queries.device)
    tied_right.index_add_(0, owner, (cosine >= best[owner] - TIE).long())

    above = torch.zeros_like(tied_right)
    below = torch.zeros_like(tied_right)
    high, low = (best + TIE)[:, None], (best - TIE)[:, None]
    for start in range(0, len(keys), width):
        scores = queries @ keys[start : start + width].T  # (b, width)
        inside = (index >= start) & (index < start + width)
        scores[owner[inside], index[inside] - start] = -torch.inf
        above += (scores > high).sum(1, dtype=torch.int32)
        below += (scores < low).sum(1, dtype=torch.int32)
    return above, len(keys) - below - above, tied_right


def hits(above: Tensor, tied: Tensor, tied_right: Tensor, ks: Sequence[int]) -> Tensor:
    """(len(ks), n) float64: the chance of a right key among the first k, in a random order of what ties.

    Per query (n,): wrong keys above the best right one, wrong keys tied with it, right keys tied with it, itself among
    them; where there are none (NaN) nothing hits. Rank by rank: what is the chance that no right key came up yet?
    """
    miss = torch.ones(len(above), dtype=torch.float64)
    answers = {}
    for rank in range(max(ks)):
        drawn = rank - above  # keys drawn from the tied ones before this rank; negative: still among those above
        wrong_left = (tied - drawn).clamp(min=0)
        left = (tied + tied_right - drawn).clamp(min=1)
        miss = torch.where(drawn >= 0, miss * wrong_left / left, miss)
        answers[rank + 1] = torch.where(tied_right > 0, 1 - miss, 0.0)
    return torch.stack([answers[k] for k in ks])
