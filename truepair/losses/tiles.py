"""Tiles of the matrix of all pairs: where one lies, and whose pairs meet in it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

QUEUE = -1  # the pair of a queue's columns: nobody's


@dataclass(frozen=True)
class Side:
    """The rows, or the columns, of a tile."""

    span: slice  # among the global batch's; a queue's follow after it
    captions: int  # how many of this side belong to one pair (K where an image has K captions)
    pairs: int  # of the global batch

    @property
    def batch(self) -> int:
        """How many of this side the global batch has; further ones are a queue's."""
        return self.pairs * self.captions

    @property
    def first(self) -> int:
        """The first pair here."""
        return int(self.span.start // self.captions)

    @property
    def last(self) -> int:
        """The last pair here; at least `pairs` for a queue."""
        return int((self.span.stop - 1) // self.captions)

    def owners(self, device: torch.device) -> Tensor:
        """(n,) the pair that each belongs to, `QUEUE` for those of a queue."""
        pair = torch.arange(self.span.start, self.span.stop, device=device) // self.captions
        return pair.masked_fill_(pair >= self.pairs, QUEUE)


@dataclass(frozen=True)
class Tile:
    """A block of the matrix: rows ask, columns are asked. Everything is numbered through the global batch."""

    row: Side
    column: Side
    at: slice  # the rows' place among the rows of this process
    device: torch.device
    dtype: torch.dtype  # of the logits; what is made for a tile is made in it
    crosses: bool  # whether a row meets a column of its own pair in here

    @staticmethod
    def of(row: Side, column: Side, at: slice, device: torch.device, dtype: torch.dtype = torch.float32) -> "Tile":
        """The tile in which these sides meet."""
        return Tile(row, column, at, device, dtype, row.first <= column.last and column.first <= row.last)

    @property
    def rows(self) -> slice:
        """Rows in the global batch."""
        return self.row.span

    @property
    def columns(self) -> slice:
        """Columns in the global batch, and in a queue after it."""
        return self.column.span

    @property
    def row_pairs(self) -> Tensor:
        """(R,) the pair of each row."""
        return self.row.owners(self.device)

    @property
    def column_pairs(self) -> Tensor:
        """(C,) the pair of each column, `QUEUE` for those of a queue."""
        return self.column.owners(self.device)

    @property
    def own(self) -> Tensor:
        """(R, C) bool: row and column belong to one pair."""
        return self.row_pairs[:, None] == self.column_pairs[None, :]

    def turned(self, at: slice) -> "Tile":
        """The same block seen from the other direction: columns ask."""
        return replace(self, row=self.column, column=self.row, at=at)


def spans(start: int, stop: int, step: int) -> Iterator[slice]:
    """[start, stop) in pieces of `step`."""
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))
