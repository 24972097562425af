"""All that an audit looks at, gathered in one pass over the images: each is decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from truepair.evaluate.features import Encoder, Progress, See, image_features, reasons, text_features, towers_of
from truepair.evaluate.matched import OwnPairs
from truepair.evaluate.noise import ROWS_AT_ONCE, PairScores, RowFeatures, row_features, scores_of
from truepair.evaluate.pairs import Pairing, encode_pairing, pairing
from truepair.models.matcher import Matcher
from truepair.noise.issues.base import Evidence, Second
from truepair.noise.issues.looks import Looks
from truepair.noise.scores import NEGATIVES
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable

SYNTHETIC = "synthetic"  # the column of `truepair caption`
CAPTIONLESS = "no caption"  # the reason for which a row is not scored though its image may be sound
UNREAD = "missing or changed file"  # the reason that is the storage's and not the image's: another time it may be gone


@dataclass(frozen=True)
class Seen:
    """What one pass with a model found of the n rows of a table.

    scores: as `score_pairs` gives them. looks: of the rows' images. synthetic: (n,) float32, cosine of the image with
        the best of the row's synthetic captions, NaN without one; None for a table without such captions.
    features: of the rows, while they are at hand.
    """

    scores: PairScores
    looks: Looks
    synthetic: npt.NDArray[np.float32] | None = None
    features: RowFeatures | None = None


@dataclass(frozen=True)
class Compared(Second):
    """A second table, and of how many of its distinct images the looks could not be had, by reason."""

    unseen: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """What audit.json says of it."""
        return {"table": self.name, "images": len(self.looks), "unseen": self.unseen}


class _Looking:
    """Stands for the model's `encode_image`: looks at the pixels before they are encoded."""

    def __init__(self, images: int, encode: See) -> None:
        self.looks, self._encode = Looks.unseen(images), encode

    def see(self, numbers: list[int], images: Tensor) -> Tensor:
        self.looks.put(numbers, images)
        return self._encode(numbers, images)


def see_table(
    model: Encoder | Matcher,
    table: PairTable,
    *,
    scale: float | None = None,
    negatives: int = NEGATIVES,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> Seen:
    """Decode and encode every distinct image and caption once.

    Memory: float32 features of the distinct images and captions (for 10 M pairs of 512 numbers 40 GB), 25 bytes an
    image. Raises UserError as `score_pairs`.
    """
    paired = pairing(table)
    own = OwnPairs(model, paired) if isinstance(model, Matcher) else None
    towers = towers_of(model)
    looking = _Looking(len(paired.first), _encoding(towers) if own is None else own.see)
    features = encode_pairing(
        towers, table, paired, batch_size=batch_size, workers=workers, progress=progress, see=looking.see
    )
    rows = row_features(towers, table, features)
    itm = None if own is None else own.of_rows()
    scores = scores_of(towers, table, rows, itm, scale, negatives=negatives, seed=seed)
    synthetic = _synthetic(towers, table, features.images, features.image_of_row)
    return Seen(scores, _of_rows(looking.looks, paired), synthetic, rows)


def _encoding(model: Encoder) -> See:
    return lambda _, images: model.encode_image(images)


def _of_rows(looks: Looks, paired: Pairing) -> Looks:
    return looks[paired.image_of_row]


def _synthetic(
    model: Encoder, table: PairTable, images: Tensor, image_of_row: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    """(n,) cosine of each row's image with the best of its synthetic captions; None if the table has none at all."""
    if SYNTHETIC not in table.column_names or table.caption_column == SYNTHETIC:
        return None
    stored = table.column(SYNTHETIC)
    if not isinstance(stored, StringLists) or not len(stored.strings.blob):
        return None
    paired = pairing(replace(table, caption_column=SYNTHETIC))
    texts = text_features(model, paired.texts)
    best = np.full(len(table), np.nan, np.float32)
    usable = image_of_row[paired.row_of_caption] >= 0
    owner, text = paired.row_of_caption[usable], paired.text_of_caption[usable]
    for start in range(0, len(owner), ROWS_AT_ONCE):
        rows = owner[start : start + ROWS_AT_ONCE]
        image = images[torch.from_numpy(image_of_row[rows])]
        said = texts[torch.from_numpy(text[start : start + ROWS_AT_ONCE])]
        np.fmax.at(best, rows, (image * said).sum(1).numpy())
    return best


def evidence_of(
    table: PairTable,
    seen: Seen,
    scale: float,
    *,
    seconds: tuple[Second, ...] = (),
    language: str = "",
    recalibrated: npt.NDArray[np.float32] | None = None,
    without_features: str = "",
) -> Evidence:
    """What issues are looked for in. `without_features` says why features that are there are not to be used.

    An image whose file could not be read (UNREAD) was not tried: nothing is known of it.
    """
    undecodable = np.zeros(len(table), bool)
    undecodable[[row for row, reason in seen.scores.skipped if reason not in (CAPTIONLESS, UNREAD)]] = True
    return Evidence(
        captions=table.captions(),
        image=table.groups("sha"),
        width=table.numbers("width"),
        height=table.numbers("height"),
        undecodable=undecodable,
        looks=seen.looks,
        cosine=seen.scores.cosine,
        neg_clip_loss=seen.scores.neg_clip_loss,
        p_noise=seen.scores.p_noise,
        no_noise_model=seen.scores.mixture.degenerate,
        scale=scale,
        itm=seen.scores.itm,
        recalibrated=recalibrated,
        synthetic=seen.synthetic,
        features=None if without_features else seen.features,
        without_features=without_features or "the features of this table are not at hand",
        seconds=seconds,
        language=language,
    )


def second_table(
    model: Encoder | Matcher,
    table: PairTable,
    other: PairTable,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> Compared:
    """What the images of `other` look like at the model's size, and which rows of `table` have their bytes.

    Raises UserError if none of its images can be looked at.
    """
    towers = towers_of(model)
    _, first = np.unique(other.groups("sha"), return_index=True)
    looks = Looks.unseen(len(first))

    def see(numbers: list[int], images: Tensor) -> Tensor:
        looks.put(numbers, images)
        return torch.zeros(len(numbers), 1)

    read = partial(_read, other, first)
    found = image_features(towers, read, len(first), batch_size=batch_size, workers=workers, progress=progress, see=see)
    same = pc.is_in(_sha(table), value_set=_sha(other).combine_chunks())
    return Compared(str(other.path), np.asarray(same), looks, reasons(found.skipped))


def _read(table: PairTable, rows: npt.NDArray[np.int64], image: int) -> bytes:
    return table.image_bytes(int(rows[image]))


def _sha(table: PairTable) -> pa.ChunkedArray:
    return pq.read_table(table.parquet("sha"), columns=["sha"], memory_map=True).column(0)


def second_tables(
    model: Encoder | Matcher, table: PairTable, others: Sequence[PairTable], **how: Any
) -> tuple[Compared, ...]:
    """`second_table` of each."""
    return tuple(second_table(model, table, other, **how) for other in others)
