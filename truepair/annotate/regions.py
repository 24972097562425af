"""Which parts of an image get features of their own: none, a grid of crops, or a detector's boxes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from truepair.annotate.identity import digest
from truepair.errors import UserError
from truepair.pairs.image import Crop
from truepair.pairs.table import PairTable

MAX_BOXES = 36  # boxes of an image at most; the number that detectors of bottom-up attention are often cut to
MAX_GRID = 16
BAD_BOX = "box without area or outside the image (row kept)"


@dataclass(frozen=True)
class Pooled:
    """The whole image alone: features (n, D)."""

    count = 1
    nested = False

    def crops(self, row: int) -> tuple[list[Crop], bool]:
        """No crop is needed beside the whole image."""
        return [], False

    def made(self) -> dict[str, Any]:
        return {"regions": "pooled"}


@dataclass(frozen=True)
class Grid:
    """The whole image, then side x side equal parts of it, row by row: features (n, 1 + side², D)."""

    side: int
    nested = True

    def __post_init__(self) -> None:
        if not 1 <= self.side <= MAX_GRID:
            raise UserError(f"--grid {self.side} makes no sense; it is a side of 1 to {MAX_GRID} crops")

    @property
    def count(self) -> int:
        return 1 + self.side**2

    def crops(self, row: int) -> tuple[list[Crop], bool]:
        """The cells, the same for every row."""
        return self._cells, False

    @cached_property
    def _cells(self) -> list[Crop]:
        step = 1 / self.side
        return [Crop(x * step, y * step, step, step) for y in range(self.side) for x in range(self.side)]

    def made(self) -> dict[str, Any]:
        return {"regions": "grid", "grid": self.side}


class Boxes:
    """The whole image, then its boxes: features (n, 1 + R, D), zeros where an image has fewer than R boxes.

    R is the longest list of the column, at most 36; further boxes are left out. A box is [x0, y0, x1, y1] in fractions
    of the image's width and height. What lies outside [0, 1] is cut off; a box without area, with a number that is
    not finite, or that is null is left out.

    Raises UserError for a column that does not hold lists of four numbers.
    """

    nested = True

    def __init__(self, table: PairTable, column: str) -> None:
        self.column = column
        self._ends, self._boxes = _read_boxes(table, column)
        longest = int(np.diff(self._ends, prepend=0).max(initial=0))
        if not longest:
            raise UserError(f"column {column!r} of {table.path} has no box in any row")
        self.count = 1 + min(longest, MAX_BOXES)

    def crops(self, row: int) -> tuple[list[Crop], bool]:
        """The row's usable boxes, and whether any was not."""
        start = int(self._ends[row - 1]) if row else 0
        boxes = self._boxes[start : int(self._ends[row])][: self.count - 1].astype(np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        left, top, right, bottom = np.clip(boxes[finite], 0, 1).T
        usable = (right > left) & (bottom > top)
        corners = np.stack([left, top, right - left, bottom - top], axis=1)[usable]
        return [Crop(*corner) for corner in corners.tolist()], len(corners) < len(boxes)

    def made(self) -> dict[str, Any]:
        content = {self.column: digest(self._ends, self._boxes)}
        return {"regions": "boxes", "boxes": self.column, "padding": "zeros", "content": content}


Regions = Pooled | Grid | Boxes


def _read_boxes(table: PairTable, column: str) -> tuple[Any, Any]:
    """End of each row's boxes (n,) int64, and all boxes (m, 4) float32; about 16 bytes a box in memory."""
    file = table.parquet(column)
    wrong = UserError(f"column {column!r} of {table.path} does not hold lists of boxes [x0, y0, x1, y1]")
    kind = pq.read_schema(file).field(column).type
    if not _is_list(kind) or not _is_list(kind.value_type):
        raise wrong
    number = kind.value_type.value_type
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise wrong
    ends, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)]
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(columns=[column]):
            lists = batch.column(0)
            counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            inner = pc.list_flatten(lists)
            if pc.any(pc.not_equal(pc.list_value_length(inner), 4)).as_py():  # a null box has no length
                raise wrong
            found = np.full((len(inner), 4), np.nan, np.float32)
            values = pc.list_flatten(inner).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
            found[inner.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, 4)
            boxes.append(found)
            ends.append(counts.astype(np.int64))
    return np.cumsum(np.concatenate(ends)), np.concatenate(boxes)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def regions_of(table: PairTable, kind: Literal["pooled", "grid", "boxes"], *, grid: int, boxes: str) -> Regions:
    """The regions that flags name. Raises UserError where they do not go together."""
    if (kind == "boxes") != bool(boxes):
        raise UserError("--regions boxes and --boxes COLUMN go together")
    if kind == "grid":
        return Grid(grid)
    return Boxes(table, boxes) if kind == "boxes" else Pooled()
