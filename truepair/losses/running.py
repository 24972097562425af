"""Sums over a row that is seen tile by tile, exact for any logits; columns' rows also over ranks."""

import torch
from torch import Tensor

from truepair.losses.distributed import all_reduce_max, all_reduce_min, all_reduce_sum


class Sums:
    """(k, n) plain sums."""

    def __init__(self, k: int, n: int, like: Tensor) -> None:
        self.values = torch.zeros(k, n, dtype=like.dtype, device=like.device)

    def add(self, at: slice, *terms: Tensor) -> None:
        """Add (R,) terms to the rows `at`, one for each of the k sums."""
        for k, term in enumerate(terms):
            self.values[k, at] += term

    def combine(self) -> None:
        """Sum over ranks."""
        all_reduce_sum(self.values)

    def __getitem__(self, k: int) -> Tensor:
        return self.values[k]


class LogSumExp:
    """log Σ_j e^x_j of n rows, and means of further quantities under the softmax of x."""

    def __init__(self, n: int, like: Tensor, means: int = 0) -> None:
        self.top = torch.full((n,), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
        self.sums = torch.zeros(1 + means, n, dtype=like.dtype, device=like.device)  # of e^(x - top), · each quantity

    def add(self, at: slice, x: Tensor, *quantities: Tensor | None) -> Tensor:
        """Take in a tile x (R, C) of the rows `at` and quantities (R, C) (None: zero here); returns e^(x - top)."""
        top = torch.maximum(self.top[at], x.amax(dim=1))
        self.sums[:, at] *= (self.top[at] - top).exp()
        self.top[at] = top
        weights = (x - top[:, None]).exp_()
        self.sums[0, at] += weights.sum(dim=1)
        for k, quantity in enumerate(quantities, 1):
            if quantity is not None:
                self.sums[k, at] += (weights * quantity).sum(dim=1)
        return weights

    def combine(self) -> None:
        """Over ranks: what each saw of the same rows becomes what all saw."""
        top = self.top.clone()
        all_reduce_max(top)
        self.sums *= (self.top - top).exp()
        all_reduce_sum(self.sums)
        self.top = top

    @property
    def value(self) -> Tensor:
        """(n,) log Σ_j e^x_j; the lowest finite number for rows in which nothing counts."""
        return (self.top + self.sums[0].log()).clamp_min(torch.finfo(self.top.dtype).min)

    def mean(self, k: int) -> Tensor:
        """(n,) Σ_j softmax(x)_j · quantity k; 0 for rows in which nothing counts."""
        return self.sums[1 + k] / self.sums[0].clamp_min(torch.finfo(self.top.dtype).tiny)


class TopAndRest:
    """The largest logit of n rows, its column, and the log-sum-exp of all others: 1 - p without cancellation."""

    def __init__(self, n: int, like: Tensor) -> None:
        lowest = torch.finfo(like.dtype).min
        self.top = torch.full((n,), lowest, dtype=like.dtype, device=like.device)
        self.index = torch.full((n,), -1, dtype=torch.int64, device=like.device)
        self.rest = torch.full((n,), lowest, dtype=like.dtype, device=like.device)

    def add(self, at: slice, x: Tensor, first: int) -> None:
        """Take in a tile x (R, C) of the rows `at`, whose columns begin at number `first`."""
        top, place = x.max(dim=1)
        lowest = torch.finfo(x.dtype).min
        others = x.scatter(1, place[:, None], -torch.inf).logsumexp(dim=1).clamp_min(lowest)
        former = self.top[at]
        higher = top > former
        self.rest[at] = torch.logaddexp(torch.logaddexp(self.rest[at], others), torch.minimum(top, former))
        self.index[at] = torch.where(higher, place + first, self.index[at])
        self.top[at] = torch.where(higher, top, former)

    def combine(self) -> None:
        """Over ranks: the highest of all wins (the lowest column among equals), the others' tops join the rest."""
        top = self.top.clone()
        all_reduce_max(top)
        index = torch.where(self.top == top, self.index, torch.iinfo(torch.int64).max)
        all_reduce_min(index)
        beaten = torch.logaddexp(self.rest, self.top.masked_fill(self.index == index, torch.finfo(top.dtype).min))
        highest = beaten.clone()
        all_reduce_max(highest)
        sums = (beaten - highest).exp()
        all_reduce_sum(sums)
        self.top, self.index, self.rest = top, index, highest + sums.log()

    @property
    def value(self) -> Tensor:
        """(n,) log-sum-exp of the whole row."""
        return torch.logaddexp(self.top, self.rest)
