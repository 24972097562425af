"""Batches for training: decoded and cropped in worker processes, in the table's order, from any step on."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.pairs import draws
from truepair.pairs.image import ImageError, decode_crop, random_crop
from truepair.pairs.order import Order
from truepair.pairs.table import PairTable
from truepair.pairs.text import (
    Completion,
    Tokenizer,
    caption_ids,
    draw_captions,
    first_captions,
    tokenize,
    wanted_synthetic,
)
from truepair.pairs.workers import items

P_NOISE = "p_noise"  # column: how likely the raw captions do not match
SUBSTITUTES = 32  # unreadable images in a row after which the source, not an image, must be broken


@dataclass(frozen=True)
class Skip:
    """A row whose image could not be used at one place of the order; another row stood in for it."""

    row: int
    reason: str
    detail: str


@dataclass
class Batch:
    """B pairs of this rank. Rows are the table's; captions of one row lie together."""

    rows: Tensor  # (B,) int64
    images: Tensor  # (V, B, S, S, 3) uint8, V independent crops of each image
    tokens: Tensor  # (B·K, L) int64, trimmed to the longest caption
    image_ids: Tensor  # (B,) int64, equal exactly where the images' bytes are (`BatchSource.image_groups`)
    caption_ids: Tensor  # (B·K,) int64, equal exactly where the captions' text is (`text.caption_ids`)
    synthetic: Tensor  # (B·K,) bool, the captions that were written by a captioner
    columns: dict[str, Tensor] = field(default_factory=dict)  # name -> (B, …)
    skipped: list[Skip] = field(default_factory=list)
    repeated_captions: int = 0  # captions that another pair of this batch has too

    def _each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**(values | moved | {"columns": {name: move(value) for name, value in self.columns.items()}}))

    def pin_memory(self) -> "Batch":
        """Page-locked copy (called by DataLoader)."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On `device`, copied without waiting where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class BatchSource:
    """Makes the batch of a global step (epoch = step // steps an epoch): what a worker process runs.

    table, order: which rows. tokenizer, pad_id: the text tower's (`text.tokenize`). size: S, pixels.
    captions: K a row; draw: at random for each epoch, or always the first. views: V crops an image.
    caption_column: of raw captions, empty: the one in force. synthetic: of synthetic ones, empty: none.
    completion: which of the K captions are synthetic (`text.wanted_synthetic`); "sample" and "replace" read column
    p_noise, the latter with the threshold `replace_above`.
    crop_scale: area range of the random crop.
    columns: numeric columns of the table that the method reads. image_groups: (n,) of its rows, equal exactly where the
    images' bytes are; None: nobody asks. rank, world: this rank's share.
    """

    table: PairTable
    order: Order
    tokenizer: Tokenizer
    pad_id: int | None
    size: int
    captions: int = 1
    views: int = 1
    crop_scale: tuple[float, float] = (0.9, 1.0)
    draw: Literal["random", "first"] = "random"
    caption_column: str = ""
    synthetic: str = ""
    completion: Completion = "both"
    replace_above: float = 0.5
    columns: Sequence[str] = ()
    image_groups: npt.NDArray[np.int64] | None = None
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        """Raises UserError if the table lacks what `completion` reads."""
        if self.completion == "both":
            return
        if not self.synthetic:
            raise UserError(
                f"completion {self.completion!r} takes synthetic captions in place of raw ones; name their column: "
                "--pairs.synthetic NAME (truepair caption writes one)"
            )
        if P_NOISE not in self.table.column_names:
            raise UserError(f"completion {self.completion!r} reads column {P_NOISE!r}, which {self.table.path} has not")
        if self.table.numbers(P_NOISE).ndim != 1:
            raise UserError(f"column {P_NOISE!r} of {self.table.path} does not hold one number a row")

    def __getitem__(self, step: int) -> Batch:
        epoch, step = divmod(step, self.order.steps)
        rows = self.order.local(epoch, step, self.rank, self.world).copy()
        images = np.empty((self.views, len(rows), self.size, self.size, 3), np.uint8)
        crops = [self._crops(rows, epoch, view) for view in range(self.views)]
        skipped: list[Skip] = []
        for i, row in enumerate(rows.tolist()):
            try:
                data = self.table.image_bytes(row)
                for view in range(self.views):
                    images[view, i] = decode_crop(data, self.size, crops[view][i])
            except (ImageError, OSError) as error:
                skipped.append(_skip(row, error))
                rows[i] = self._substitute(row, epoch, images[:, i], skipped)
        texts, is_synthetic = self._captions(rows, epoch)
        return Batch(
            rows=torch.from_numpy(rows),
            images=torch.from_numpy(images),
            tokens=tokenize(self.tokenizer, texts, self.pad_id),
            image_ids=self._image_ids(rows),
            caption_ids=caption_ids(texts),
            synthetic=torch.from_numpy(is_synthetic),
            columns={name: torch.from_numpy(np.asarray(self.table.numbers(name)[rows])) for name in self.columns},
            skipped=skipped,
            repeated_captions=_repeated(texts, self.captions),
        )

    def _captions(self, rows: Any, epoch: int) -> tuple[list[str], Any]:
        """B·K captions of `rows`, and (B·K,) bool: which are synthetic."""
        wanted = wanted_synthetic(
            rows,
            self.captions,
            self.completion,
            None if self.completion == "both" else self.table.numbers(P_NOISE)[rows],
            replace_above=self.replace_above,
            seed=self.seed,
            epoch=epoch,
        )
        raw = self._stored(self.caption_column, rows)
        synthetic = self._stored(self.synthetic, rows) if self.synthetic else None
        if self.draw == "first":
            return first_captions(raw, wanted, synthetic)
        return draw_captions(raw, rows, wanted, self.seed, epoch, synthetic)

    def _image_ids(self, rows: Any) -> Tensor:
        """(B,) numbers of the images; zeros where nobody asks for them."""
        if self.image_groups is None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return torch.from_numpy(self.image_groups[rows])

    def _stored(self, column: str, rows: Any) -> list[list[str]]:
        captions = self.table.captions(column)
        return [captions[row] for row in rows.tolist()]

    def _crops(self, rows: Any, epoch: int, view: int) -> Any:
        uniform = draws.uniform(rows, 4, self.seed, epoch, draws.CROP, view)
        width, height = self.table.numbers("width")[rows], self.table.numbers("height")[rows]
        return random_crop(width, height, uniform, self.crop_scale)

    def _substitute(self, row: int, epoch: int, image: Any, skipped: list[Skip]) -> int:
        """Fill `image` (V, S, S, 3) from another row, chosen by the missing row's number alone, and return that row."""
        for attempt in range(SUBSTITUTES):
            drawn = draws.bits(np.array([row]), self.seed, epoch, draws.SUBSTITUTE, attempt)[0]
            other = int(self.order.rows[int(drawn) % len(self.order.rows)])
            try:
                data = self.table.image_bytes(other)
                for view in range(self.views):
                    image[view] = decode_crop(data, self.size, self._crops(np.array([other]), epoch, view)[0])
                return other
            except (ImageError, OSError) as error:
                skipped.append(_skip(other, error))
        raise UserError(f"{SUBSTITUTES} images in a row cannot be read, from row {row} on: {skipped[-1].detail}")


def _repeated(texts: list[str], captions: int) -> int:
    """How many of the B·K captions an earlier pair of the batch has too (one pair may hold a caption twice)."""
    of_pairs = [text for i in range(0, len(texts), captions) for text in set(texts[i : i + captions])]
    return len(of_pairs) - len(set(of_pairs))


def _skip(row: int, error: ImageError | OSError) -> Skip:
    reason = error.reason if isinstance(error, ImageError) else "source changed or missing"
    return Skip(row, reason, str(error)[:200])


def batches(
    source: BatchSource, start: int, stop: int, *, workers: int, pin: bool = False
) -> Generator[Batch, None, None]:
    """The batches of the global steps [start, stop); the result does not depend on the number of `workers`."""
    return items(source, range(start, stop), workers=workers, pin=pin)
