"""What a pair of a global batch should be: targets, made tile by tile so that no B×B matrix need exist."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A block of the matrix of all rows of this rank × all columns of the global batch."""

    rows: slice  # among this rank's rows
    columns: slice  # among the global batch's columns
    row_pairs: Tensor  # (R,) number, in the global batch, of the pair each row belongs to
    column_pairs: Tensor  # (C,) the same for the columns, -1 for those of a queue
    dtype: torch.dtype = torch.float32  # of the logits; a target made here is made in it

    @property
    def own(self) -> Tensor:
        """(R, C) bool: row and column belong to one pair (K columns a row where an image has K captions)."""
        return self.row_pairs[:, None] == self.column_pairs[None, :]


class Target(Protocol):
    """Any object with a `tile`. Quantities per row of this rank are indexed with `tile.rows`; what concerns columns
    must cover the global batch (gather it with `all_gather`). A row normaliser is computed before, not in `tile`."""

    def tile(self, tile: Tile) -> Tensor:
        """(R, C): a distribution over a row's columns for softmax; of a match the probability for sigmoid; weights."""
        ...


@dataclass(frozen=True)
class Own:
    """The own pair is the only positive: CLIP's and SigLIP's target."""

    share: float = 1.0  # of each own column; 1/K under softmax for image rows, where K captions share the row

    def tile(self, tile: Tile) -> Tensor:
        return tile.own.to(tile.dtype) * self.share


@dataclass(frozen=True)
class Groups:
    """Every column of the row's group is a positive (same caption, same image), evenly under softmax.

    rows: (N,) group of this rank's rows. columns: (M,) group of the global batch's columns.
    normalise: rows sum to 1 (softmax) or every positive counts 1 (sigmoid).
    """

    rows: Tensor
    columns: Tensor
    normalise: bool = True

    def tile(self, tile: Tile) -> Tensor:
        groups = self.rows[tile.rows]
        positive = (groups[:, None] == self.columns[tile.columns][None, :]).to(tile.dtype)
        if not self.normalise:
            return positive
        order = torch.sort(self.columns).values
        size = torch.searchsorted(order, groups, right=True) - torch.searchsorted(order, groups)
        return positive / size[:, None].clamp_min(1)


@dataclass(frozen=True)
class Dense:
    """A target given in full, (N, M) for this rank's rows: for small batches, tests and first attempts at a method."""

    matrix: Tensor

    def tile(self, tile: Tile) -> Tensor:
        return self.matrix[tile.rows, tile.columns]
