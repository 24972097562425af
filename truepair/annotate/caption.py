"""Synthetic captions: a captioner looks at the images of a table, and what it writes becomes a column."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from torch import Tensor

import truepair
from truepair.annotate.identity import content, weights
from truepair.annotate.parts import Parts
from truepair.errors import UserError
from truepair.losses.distributed import world_size
from truepair.models.image_to_text import Captioner, Decoding, Preparer
from truepair.pairs.image import ImageError, decode_whole
from truepair.pairs.table import PairTable
from truepair.pairs.workers import items

LOG = "skipped-caption.jsonl"
NOTHING = "captioner wrote nothing"
UNFIT = "image unfit for the captioner"
REFUSED = (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError)  # by a model's own preparation

Progress = Callable[[int], None]  # called with the number of rows just done, by all ranks as far as this one can tell
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Captioned:
    """What came of it. table: the new one. rows: that have captions now, of `looked_at`. skipped: count by reason."""

    table: Path
    column: str
    looked_at: int
    rows: int
    captions: int
    skipped: dict[str, int]


def caption_table(
    table: PairTable,
    captioner: Captioner,
    out: Path,
    *,
    name: str = "synthetic",
    decoding: Decoding | None = None,
    min_p_noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Captioned | None:
    """Write the table `out`: `table` with the column `name`, a list of up to `decoding.n` captions for every row.

    Rows that are not looked at (p_noise below `min_p_noise`, or unknown), that cannot be read, or for which the model
    writes nothing have an empty list; the latter two are counted and named in OUT/skipped-caption.jsonl. The captions
    in force stay those they were. Killed at any moment, the same call goes on; ranks share the rows (`Parts`), and
    all but the first get None.
    Raises UserError for names, files and models that do not fit, and where all of the first part's rows give nothing.
    """
    decoding = decoding or Decoding()
    looked_at = _looked_at(table, min_p_noise)
    made = {
        "by": "truepair caption",
        "model": captioner.name,
        "weights": weights(captioner.model),
        "decoding": _of_use(decoding),
        "prompt": captioner.prompt,
        "seed": seed,
        "min_p_noise": min_p_noise,
        "precision": captioner.precision,
        "versions": {"truepair": truepair.__version__, "transformers": captioner.version},
        **({"content": {"p_noise": content(table.numbers("p_noise"))}} if min_p_noise else {}),
    }
    for column in ("source", "offset", "size", "path"):
        table.column(column)  # mapped here once, so that no worker has to
    parts = Parts.open(table, out, {name: made}, overwrite=overwrite)
    if progress is not None:
        progress(parts.done)
    chunks = list(parts.todo())
    plan = [batch for chunk in chunks for batch in _batches(chunk[looked_at[chunk]], batch_size)]
    prepared = items(
        _Source(table, captioner.preparer, plan),
        range(len(plan)),
        workers=workers,
        pin=captioner.device.type == "cuda",
    )
    with closing(prepared):
        for rows in chunks:
            written: dict[int, list[str]] = {}
            skipped: list[tuple[int, str]] = []
            for _ in _batches(rows[looked_at[rows]], batch_size):
                _caption(next(prepared), captioner, decoding, seed, written, skipped)
            if rows[0] == 0 and len(skipped) == len(rows):  # later ones may be a damaged shard
                reasons = ", ".join(sorted({reason for _, reason in skipped}))
                raise UserError(
                    f"none of the rows {rows[0]} to {rows[-1]} gave a caption ({reasons}); check {table.path}"
                )
            lists = pa.array([written.get(row, []) for row in rows.tolist()], pa.list_(pa.string()))
            parts.write(rows, {name: lists}, sorted(skipped))
            if progress is not None:
                progress(len(rows) * world_size())
    finished = parts.finish(LOG)
    if finished is None:
        return None
    counts = finished.table.captions(name).counts
    return Captioned(out, name, int(looked_at.sum()), int((counts > 0).sum()), int(counts.sum()), finished.skipped)


@dataclass(frozen=True)
class _Prepared:
    """A batch as a worker hands it over: the rows that could be prepared, and the model's inputs for them."""

    rows: Rows
    inputs: dict[str, Tensor]
    skipped: list[tuple[int, str]]


class _Source:
    """Item i is the prepared batch i of the plan."""

    def __init__(self, table: PairTable, preparer: Preparer, plan: list[Rows]) -> None:
        self.table, self.preparer, self.plan = table, preparer, plan

    def __getitem__(self, index: int) -> _Prepared:
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
        return _Prepared(np.array(rows, np.int64), inputs, skipped)

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


def _caption(
    batch: _Prepared,
    captioner: Captioner,
    decoding: Decoding,
    seed: int,
    written: dict[int, list[str]],
    skipped: list[tuple[int, str]],
) -> None:
    """Add a batch's captions, and the rows that have none, to those of its chunk."""
    skipped += batch.skipped
    if not len(batch.rows):
        return
    texts = captioner.generate(batch.inputs, batch.rows, decoding, seed)
    written |= dict(zip(batch.rows.tolist(), texts, strict=True))
    skipped += [(row, NOTHING) for row, captions in zip(batch.rows.tolist(), texts, strict=True) if not captions]


def _looked_at(table: PairTable, min_p_noise: float) -> npt.NDArray[np.bool_]:
    """(n,) True for the rows to caption."""
    if not 0 <= min_p_noise <= 1:
        raise UserError(f"--min-p-noise {min_p_noise} makes no sense; it is a probability")
    if min_p_noise == 0:
        return np.ones(len(table), np.bool_)
    p_noise = table.numbers("p_noise")
    if p_noise.ndim != 1:
        raise UserError(f"column 'p_noise' of {table.path} does not hold one number a row")
    chosen: npt.NDArray[np.bool_] = np.asarray(p_noise) >= min_p_noise
    return chosen


def _batches(rows: Rows, size: int) -> list[Rows]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _of_use(decoding: Decoding) -> dict[str, Any]:
    """The settings that matter to the method chosen."""
    idle = {"nucleus": ("beams",), "beam": ("top_p", "temperature"), "greedy": ("beams", "top_p", "temperature")}
    return {key: value for key, value in asdict(decoding).items() if key not in idle[decoding.method]}
