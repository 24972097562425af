"""Images of a table prepared for a model in worker processes, batch by batch; what cannot be is named, row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from truepair.errors import UserError
from truepair.pairs.image import ImageError, decode_whole
from truepair.pairs.table import PairTable

UNFIT = "image unfit for the captioner"
REFUSED = (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError)  # by a model's own preparation

Rows: TypeAlias = npt.NDArray[np.int64]
Preparation: TypeAlias = Callable[[Sequence[Image.Image]], dict[str, Tensor]]  # B RGB images -> a model's inputs


@dataclass(frozen=True)
class Prepared:
    """A batch as a worker hands it over: the rows that could be prepared, and the model's inputs for them."""

    rows: Rows
    inputs: dict[str, Tensor]
    skipped: list[tuple[int, str]]

    def pin_memory(self) -> "Prepared":
        """Page-locked copy (called by DataLoader)."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


class PreparedImages:
    """Item i is the prepared batch i of `plan`, rows of `table`; for `pairs.workers.items`.

    An image that cannot be read, or that the preparation refuses, costs no other. Raises UserError where it refuses
    images together that it takes alone.
    """

    def __init__(self, table: PairTable, preparer: Preparation, plan: Sequence[Rows]) -> None:
        self.table, self.preparer, self.plan = table, preparer, plan

    def __getitem__(self, index: int) -> Prepared:
        rows: list[int] = []
        images: list[Image.Image] = []
        skipped: list[tuple[int, str]] = []
        for row in self.plan[index].tolist():
            try:
                images.append(decode_whole(self.table.image_bytes(row)))
                rows.append(row)
            except ImageError as error:
                skipped.append((row, error.reason))
            except OSError:
                skipped.append((row, "missing or changed file"))
        try:
            inputs = self.preparer(images) if images else {}
        except REFUSED:
            fits = [self._fits(image) for image in images]
            skipped += [(row, UNFIT) for row, fit in zip(rows, fits, strict=True) if not fit]
            rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
            inputs = self._together([image for image, fit in zip(images, fits, strict=True) if fit], len(images))
        return Prepared(np.array(rows, np.int64), inputs, skipped)

    def _fits(self, image: Image.Image) -> bool:
        try:
            self.preparer([image])
        except REFUSED:
            return False
        return True

    def _together(self, images: list[Image.Image], tried: int) -> dict[str, Tensor]:
        """The inputs of those of `tried` images that fit alone; UserError if it is no single image that is wrong."""
        if not images and tried == 1:
            return {}
        try:
            return self.preparer(images)
        except REFUSED as error:
            raise UserError(f"the captioner's preparation refuses batches of images: {str(error)[:200]!r}") from error
