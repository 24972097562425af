"""Encodes a pair table: every distinct image and every distinct caption once."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate.features import Encoder, Progress, See, Skipped, image_features, text_features
from truepair.pairs.table import PairTable

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairing:
    """Which distinct image and captions each row has. Rows are those asked for, 0..n-1.

    rows: (n,) row numbers in the table. first: (I,) a row that has each distinct image.
    image_of_row: (n,) number of the row's distinct image.
    row_of_caption, text_of_caption: (C,) the row each caption stands in, ascending, and the number of its text.
    texts: the T distinct captions, at least one, none empty.
    """

    rows: Integers
    first: Integers
    image_of_row: Integers
    row_of_caption: Integers
    text_of_caption: Integers
    texts: list[str]


@dataclass(frozen=True)
class PairFeatures:
    """Features of a table's distinct images and captions, and which row has which. Rows are those asked for, 0..n-1.

    images: (I, D), texts: (T, D) float32 unit rows, on the CPU.
    rows: (n,) row numbers in the table.
    image_of_row: (n,) number of the row's image, -1 where it could not be decoded.
    row_of_caption, text_of_caption: (C,) the row each caption stands in, ascending, and the number of its text.
    skipped: (row number in the table, reason), one entry for every row without a usable image or caption.
    """

    images: Tensor
    texts: Tensor
    rows: Integers
    image_of_row: Integers
    row_of_caption: Integers
    text_of_caption: Integers
    skipped: list[Skipped]


def pairing(table: PairTable, *, rows: Integers | None = None, captions_per_row: int | None = None) -> Pairing:
    """Images and captions in force of `rows` (default all), read but not encoded. UserError if there are none."""
    rows = np.arange(len(table)) if rows is None else np.asarray(rows, np.int64)
    row_of_caption, text_of_caption, texts = _captions(table, rows, captions_per_row)
    if not texts:
        raise UserError(f"{table.path} has no captions in {table.caption_column!r} for the rows asked for")
    _, first, group = np.unique(table.groups("sha")[rows], return_index=True, return_inverse=True)
    return Pairing(rows, rows[first], group, row_of_caption, text_of_caption, texts)


def encode_pairs(
    model: Encoder,
    table: PairTable,
    *,
    rows: Integers | None = None,
    captions_per_row: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> PairFeatures:
    """Encode the images and the captions in force of `rows` (default all). Raises UserError if there are none.

    `progress` is called with the number of images done.
    """
    paired = pairing(table, rows=rows, captions_per_row=captions_per_row)
    return encode_pairing(model, table, paired, batch_size=batch_size, workers=workers, progress=progress)


def encode_pairing(
    model: Encoder,
    table: PairTable,
    paired: Pairing,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
    see: See | None = None,
) -> PairFeatures:
    """`encode_pairs` of what `pairing` found in `table`.

    `see` stands for `model.encode_image`; it gets the numbers of `paired`'s distinct images, in the order of the
    result's.
    """
    found = image_features(
        model,
        partial(_read, table, paired.first),
        len(paired.first),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        see=see,
    )
    number = np.full(len(paired.first), -1)
    number[found.rows] = np.arange(len(found.rows))
    image_of_row, rows = number[paired.image_of_row], paired.rows

    reason = dict(found.skipped)
    skipped = [(int(rows[i]), reason[int(paired.image_of_row[i])]) for i in np.flatnonzero(image_of_row < 0)]
    captionless = np.bincount(paired.row_of_caption, minlength=len(rows)) == 0
    skipped += [(int(rows[i]), "no caption") for i in np.flatnonzero(captionless & (image_of_row >= 0))]
    return PairFeatures(
        images=found.features,
        texts=text_features(model, paired.texts),
        rows=rows,
        image_of_row=image_of_row,
        row_of_caption=paired.row_of_caption,
        text_of_caption=paired.text_of_caption,
        skipped=sorted(skipped),
    )


def _read(table: PairTable, rows: Integers, image: int) -> bytes:
    return table.image_bytes(int(rows[image]))


def _captions(table: PairTable, rows: Integers, per_row: int | None) -> tuple[Integers, Integers, list[str]]:
    """Row (index into `rows`) and text number of every caption, and the distinct texts."""
    name = table.caption_column
    lists = pq.read_table(table.parquet(name), columns=[name], memory_map=True).column(0).combine_chunks()
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lists = lists.take(pa.array(rows))
    owner = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    captions = pc.list_flatten(lists)
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    wanted = np.asarray(pc.fill_null(pc.not_equal(captions, ""), False))
    if per_row is not None:
        wanted &= place < per_row
    encoded = captions.filter(pa.array(wanted)).dictionary_encode()
    text = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return owner[wanted], text, encoded.dictionary.to_pylist()
