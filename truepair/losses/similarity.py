"""Second similarities that targets are made of: of pooled features, or of tokens, one tile at a time."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from truepair.losses.distributed import all_gather
from truepair.losses.tiles import Side, Tile, spans

TOKEN_PAIRS = 1 << 24  # cosines between tokens held at once


class Similarity(Protocol):
    """Something that knows how alike row and column are."""

    def tile(self, tile: Tile) -> Tensor:
        """(R, C) of the tile's dtype."""
        ...


@dataclass(frozen=True)
class Pooled:
    """scale · rows · columnsᵀ, of features that cover the global batch (and a queue after it).

    rows (n, d), columns (m, d): a vector for each row and column of the matrix, or one for each pair, which then
    stands for all of the pair's captions. Unit vectors make it a cosine.
    """

    rows: Tensor
    columns: Tensor
    scale: float | Tensor = 1.0

    @staticmethod
    def gathered(
        rows: Tensor, columns: Tensor | None = None, *, scale: float | Tensor = 1.0, queue: Tensor | None = None
    ) -> "Pooled":
        """From this rank's features (b, d) of both sides (columns None: the same), without gradient.

        queue: (Q, d) further columns, alike on all ranks.
        """
        one = all_gather(rows.detach())
        other = one if columns is None else all_gather(columns.detach())
        return Pooled(one, other if queue is None else torch.cat([other, queue.to(other.dtype)]), scale)

    def tile(self, tile: Tile) -> Tensor:
        rows, row_index = _of_side(self.rows, tile.row, tile.device)
        columns, column_index = _of_side(self.columns, tile.column, tile.device)
        cosines = self.scale * rows.to(tile.dtype) @ columns.to(tile.dtype).T
        return _spread(cosines, row_index, column_index)


@dataclass(frozen=True)
class Tokens:
    """scale · mean over a row's tokens of the highest cosine with a column's tokens: fine-grained similarity.

    rows (n, P, d), columns (m, L, d): unit tokens that cover the global batch, one set a pair or one a caption; zero
    tokens are padding and do not count; a side without any token is similar to nothing (0).
    Source: late interaction as in FILIP (Yao et al., 2022, eq. 4), here within one modality; ours for SoftCLIP.
    """

    rows: Tensor
    columns: Tensor
    scale: float = 1.0

    @staticmethod
    def gathered(rows: Tensor, columns: Tensor | None = None, *, scale: float = 1.0) -> "Tokens":
        """From this rank's tokens (b, P, d) of both sides (columns None: the same), without gradient.

        All ranks must have the same P; places that are padding in all of the global batch are dropped.
        """
        one = _without_padding(all_gather(rows.detach()))
        return Tokens(one, one if columns is None else _without_padding(all_gather(columns.detach())), scale)

    def tile(self, tile: Tile) -> Tensor:
        rows, row_index = _of_side(self.rows, tile.row, tile.device)
        columns, column_index = _of_side(self.columns, tile.column, tile.device)
        each = rows.shape[1] * columns.shape[1]  # cosines of one row with one column
        wide = max(1, min(len(columns), TOKEN_PAIRS // each))
        high = max(1, TOKEN_PAIRS // (each * wide))
        best = rows.new_empty(len(rows), len(columns), dtype=tile.dtype)
        for r in spans(0, len(rows), high):
            for c in spans(0, len(columns), wide):
                best[r, c] = _best_matches(rows[r].to(tile.dtype), columns[c].to(tile.dtype))
        return _spread(best.mul_(self.scale), row_index, column_index)


class Once:
    """A similarity that remembers its last tile, for several targets that look at the same one in turn."""

    def __init__(self, similarity: Similarity) -> None:
        self.similarity = similarity
        self._seen: tuple[Tile, Tensor] | None = None

    def tile(self, tile: Tile) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler sees by itself what is computed twice
            return self.similarity.tile(tile)
        if self._seen is None or self._seen[0] != tile:
            self._seen = tile, self.similarity.tile(tile)
        return self._seen[1]


def _without_padding(tokens: Tensor) -> Tensor:
    """(n, P, d) without the places p that are zero in every row; one is kept."""
    used = tokens.any(dim=-1).any(dim=0)
    used[0] |= ~used.any()
    return tokens[:, used]


def _best_matches(rows: Tensor, columns: Tensor) -> Tensor:
    """(r, P, d), (c, L, d) -> (r, c): mean over the row's real tokens of the best cosine with a real token."""
    real_row, real_column = rows.any(dim=-1), columns.any(dim=-1)  # (r, P), (c, L)
    cosines = rows.flatten(0, 1) @ columns.flatten(0, 1).T
    cosines = cosines.view(*rows.shape[:2], *columns.shape[:2])  # (r, P, c, L)
    best = cosines.masked_fill_(~real_column, torch.finfo(rows.dtype).min).amax(dim=3)  # (r, P, c)
    best = best * real_row[:, :, None] / real_row.sum(dim=1).clamp_min(1)[:, None, None]
    return best.sum(dim=1).masked_fill_(~real_column.any(dim=1), 0.0)


def _of_side(features: Tensor, side: Side, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The features a side of the tile needs, and, where there is one a pair for several captions, which is whose."""
    if side.captions > 1 and len(features) == side.pairs:
        return features[side.first : side.last + 1], side.owners(device) - side.first
    if side.span.stop > len(features):
        raise ValueError(f"features of {len(features)} rows for a batch of {side.batch}: gather them, add the queue's")
    return features[side.span], None


def _spread(tile: Tensor, row_index: Tensor | None, column_index: Tensor | None) -> Tensor:
    tile = tile if row_index is None else tile[row_index]
    return tile if column_index is None else tile[:, column_index]
