"""What a pair of a global batch should be: targets, made tile by tile so that no B×B matrix need exist.

`Own`, `Groups`, `Columns` and `Dense` are known tile by tile. `Softened`, `Relation` and `Sharpened` are made of the
softmax of a second similarity, whose rows are summed over all tiles first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from truepair.losses.running import LogSumExp, Sums
from truepair.losses.similarity import Similarity
from truepair.losses.tiles import Tile


class Target(Protocol):
    """Any object with a `tile`. Whatever it holds must cover the global batch (gather it with `all_gather`)."""

    def tile(self, tile: Tile) -> Tensor | None:
        """(R, C), or None where it is neutral all over the tile: 0 for a target, 1 for a weight.

        As a target, a distribution over a row's columns (softmax) or of each match the probability (sigmoid).
        """
        ...


@runtime_checkable
class Normalised(Protocol):
    """A target whose rows are normalised over all columns: that takes a walk over all tiles before the first `tile`."""

    def start(self, n: int, like: Tensor) -> Any:
        """A tuple of running sums for n rows, of the dtype and device of `like`."""
        ...

    def collect(self, sums: Any, tile: Tile) -> None:
        """Take in a tile."""
        ...

    def normalisers(self, sums: Any) -> tuple[Tensor, ...]:
        """What `tile` needs to know of every row, (n,) each."""
        ...

    def tile(self, tile: Tile, normalisers: Sequence[Tensor]) -> Tensor:
        """(R, C)."""
        ...


def without_own(logits: Tensor, tile: Tile) -> Tensor:
    """Logits (R, C) in which the own pairs cannot be chosen: -inf."""
    return logits.masked_fill(tile.own, -torch.inf) if tile.crosses else logits


def _softmax(logits: Tensor, log_sum: Tensor) -> Tensor:
    return logits.sub(log_sum[:, None]).exp_()


@dataclass(frozen=True)
class Own:
    """The own pair is the only positive: CLIP's and SigLIP's target.

    normalise: K own columns share the row (softmax), or each counts 1 (sigmoid).
    """

    normalise: bool = True

    def tile(self, tile: Tile) -> Tensor | None:
        if not tile.crosses:
            return None
        own = tile.own.to(tile.dtype)
        return own / tile.column.captions if self.normalise else own


@dataclass(frozen=True)
class Groups:
    """Every column of the row's group is a positive (same caption, same image), evenly under softmax.

    rows: (n,) groups of the global batch's rows. columns: (m,) groups of its columns (and of a queue's after them).
    normalise: rows sum to 1 (softmax) or every positive counts 1 (sigmoid).
    """

    rows: Tensor
    columns: Tensor
    normalise: bool = True

    def tile(self, tile: Tile) -> Tensor | None:
        groups = self.rows[tile.rows]
        positive = (groups[:, None] == self.columns[tile.columns][None, :]).to(tile.dtype)
        if not self.normalise:
            return positive
        size = torch.searchsorted(self._sorted, groups, right=True) - torch.searchsorted(self._sorted, groups)
        return positive / size[:, None].clamp_min(1)

    @cached_property
    def _sorted(self) -> Tensor:
        return torch.sort(self.columns).values


@dataclass(frozen=True)
class Columns:
    """A weight of each column, the same for all rows; values: (m,) of the global batch's columns (and a queue's)."""

    values: Tensor

    def tile(self, tile: Tile) -> Tensor | None:
        size = tile.rows.stop - tile.rows.start
        return self.values[tile.columns].to(tile.dtype).expand(size, -1)


@dataclass(frozen=True)
class Dense:
    """A target given in full, (n, m) of the global batch: for small batches, tests and first attempts at a method."""

    matrix: Tensor

    def tile(self, tile: Tile) -> Tensor | None:
        return self.matrix[tile.rows, tile.columns].to(tile.dtype)


@dataclass(frozen=True)
class Softened:
    """(1 - share) · own + share · softmax of a second similarity: smoothing by a momentum twin or by guidance features.

    guide: its scale is that softmax's 1/τ; the columns of a queue take part. share: a number, or (n,) for the rows of
    the global batch. For the softmax losses.
    Source: α of ALBEF and NEVER (METHODS.md §1), β of SoftCLIP (§4).
    """

    guide: Similarity
    share: float | Tensor

    def start(self, n: int, like: Tensor) -> tuple[LogSumExp, Sums]:
        return LogSumExp(n, like, means=1), Sums(1, n, like)

    def collect(self, sums: tuple[LogSumExp, Sums], tile: Tile, logits: Tensor | None = None) -> None:
        guide, own = sums
        guide.add(tile.at, self.guide.tile(tile), logits)
        if logits is not None and tile.crosses:
            own.add(tile.at, (tile.own * logits).sum(dim=1) / tile.column.captions)

    def normalisers(self, sums: tuple[LogSumExp, Sums]) -> tuple[Tensor, ...]:
        return (sums[0].value,)

    def tile(self, tile: Tile, normalisers: Sequence[Tensor]) -> Tensor:
        share = self.share_of(tile)
        q = _softmax(self.guide.tile(tile), normalisers[0][tile.at]).mul_(share)
        return q.add_(tile.own.to(q.dtype) * ((1 - share) / tile.column.captions)) if tile.crosses else q

    def expectation(self, sums: tuple[LogSumExp, Sums], rows: slice) -> Tensor:
        share = self.share[rows] if isinstance(self.share, Tensor) else self.share
        return share * sums[0].mean(0) + (1 - share) * sums[1][0]

    def share_of(self, tile: Tile) -> Tensor | float:
        """Of a tile's rows, (R, 1) or a number."""
        return self.share[tile.rows, None].to(tile.dtype) if isinstance(self.share, Tensor) else self.share


@dataclass(frozen=True)
class Relation:
    """Softmax of a second similarity over all pairs but the own: what SoftCLIP asks of the negatives (§4, Q*).

    A row without other pairs is all zero. For the softmax losses, with `others=True`.
    """

    guide: Similarity

    def start(self, n: int, like: Tensor) -> tuple[LogSumExp]:
        return (LogSumExp(n, like, means=1),)

    def collect(self, sums: tuple[LogSumExp], tile: Tile, logits: Tensor | None = None) -> None:
        sums[0].add(tile.at, without_own(self.guide.tile(tile), tile), logits)

    def normalisers(self, sums: tuple[LogSumExp]) -> tuple[Tensor, ...]:
        return (sums[0].value,)

    def tile(self, tile: Tile, normalisers: Sequence[Tensor]) -> Tensor:
        return _softmax(without_own(self.guide.tile(tile), tile), normalisers[0][tile.at])

    def expectation(self, sums: tuple[LogSumExp], rows: slice) -> Tensor:
        return sums[0].mean(0)


@dataclass(frozen=True)
class Sharpened:
    """The square of a softened target, its rows normalised, then the own columns set to 1: NEVER's q̃ (§1)."""

    soft: Softened

    def start(self, n: int, like: Tensor) -> tuple[LogSumExp, LogSumExp]:
        return LogSumExp(n, like, means=1), LogSumExp(n, like)

    def collect(self, sums: tuple[LogSumExp, LogSumExp], tile: Tile) -> None:
        guide = self.soft.guide.tile(tile)
        sums[0].add(tile.at, guide, tile.own.to(tile.dtype) if tile.crosses else None)
        sums[1].add(tile.at, 2 * guide)

    def normalisers(self, sums: tuple[LogSumExp, LogSumExp]) -> tuple[Tensor, ...]:
        log_sum = sums[0].value
        squares = (sums[1].value - 2 * log_sum).exp()  # Σ_j p_j²
        return log_sum, squares, sums[0].mean(0)  # the last: Σ of p over the own columns

    def tile(self, tile: Tile, normalisers: Sequence[Tensor]) -> Tensor:
        _, squares, own = normalisers
        share, each = self.soft.share_of(tile), 1 / tile.column.captions
        total = share**2 * squares[tile.at, None] + (1 - share) ** 2 * each
        total += 2 * share * (1 - share) * each * own[tile.at, None]
        q = self.soft.tile(tile, normalisers).square_().div_(total)
        return q.masked_fill_(tile.own, 1.0) if tile.crosses else q
