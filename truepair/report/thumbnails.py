"""Pairs as a page shows them: a small picture that travels inside the page, captions cut to a line or two."""

import base64
import io
import math
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from truepair.pairs.image import Crop, ImageError, decode_crop
from truepair.pairs.table import SCHEMA, PairTable
from truepair.report.record import PairLosses

SIZE = 128  # pixels of a thumbnail's longer side, at most
LONGEST_CAPTION = 140  # characters
MOST_CAPTIONS = 3
_WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Picture:
    """uri: data URI of a JPEG, "" if there is none; problem: why there is none.

    width, height: pixels to show it at, in the image's own proportion.
    """

    uri: str
    width: int
    height: int
    problem: str


@dataclass(frozen=True)
class DoubtedPair:
    """A pair as the page shows it. All text is as the table has it but clipped: hostile until the page escapes it.

    captions: those trained on; more: how many were left out. before: the first caption before captions were corrupted
    or rewritten, where they differ.
    p_noise, loss, confidence: NaN where it is not known. times_noisy: how often the method called the pair noisy in
    the run; None where it calls none so. truth: really mismatched; None where it is not known. was: an earlier p_noise,
    NaN where none is told.
    """

    row: int
    picture: Picture
    captions: list[str]
    more: int
    before: list[str]
    p_noise: float
    loss: float
    confidence: float
    times_noisy: int | None
    truth: bool | None
    was: float = math.nan


def worst(losses: PairLosses, count: int) -> NDArray[np.int64]:
    """Places in `losses` of the `count` most doubted pairs, the most doubted first.

    The highest p_noise; among equals (all, where there is no sound fit) the least confidence of the method's, if it has
    one; then the highest loss.
    """
    own = np.zeros(len(losses.loss)) if losses.opinion is None else losses.opinion.confidence
    order: NDArray[np.int64] = np.lexsort((-losses.loss, own, -losses.p_noise))[:count]
    return order


def doubted_pairs(table: PairTable, losses: PairLosses, count: int, caption_column: str = "") -> list[DoubtedPair]:
    """The `count` `worst` pairs with pictures and captions."""
    return shown_pairs(table, losses, worst(losses, count), caption_column)


def shown_pairs(
    table: PairTable, losses: PairLosses, places: NDArray[np.int64], caption_column: str = ""
) -> list[DoubtedPair]:
    """The pairs at some `places` in `losses`; an image that cannot be shown is named, never skipped."""
    captions = table.captions(caption_column)
    original = table.captions("caption") if (caption_column or table.caption_column) not in SCHEMA.names else captions
    opinion, pairs = losses.opinion, []
    for place in places:
        row = int(losses.rows[place])
        texts, before = captions[row], original[row]
        pairs.append(
            DoubtedPair(
                row=row,
                picture=picture(table, row),
                captions=[clipped(text) for text in texts[:MOST_CAPTIONS]],
                more=max(len(texts) - MOST_CAPTIONS, 0),
                before=[clipped(text) for text in before[:1]] if before != texts else [],
                p_noise=math.nan if losses.fit is None else float(losses.p_noise[place]),
                loss=float(losses.loss[place]),
                confidence=math.nan if opinion is None else float(opinion.confidence[place]),
                times_noisy=None if opinion is None else int(opinion.times[place]),
                truth=None if losses.truth is None else bool(losses.truth[place]),
            )
        )
    return pairs


def picture(table: PairTable, row: int) -> Picture:
    """A row's image, small; one that cannot be shown says why."""
    wide, high = max(int(table.numbers("width")[row]), 1), max(int(table.numbers("height")[row]), 1)
    width, height = max(round(SIZE * min(1.0, wide / high)), 1), max(round(SIZE * min(1.0, high / wide)), 1)
    try:
        pixels = decode_crop(table.image_bytes(row), min(SIZE, max(wide, high)), _WHOLE)  # the page unsquares it
    except ImageError as error:
        return Picture("", width, height, clipped(str(error)))
    except (OSError, pa.ArrowException) as error:
        return Picture("", width, height, clipped(f"image file not readable: {error}"))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(uri, width, height, "")


def clipped(text: str) -> str:
    """At most LONGEST_CAPTION characters on one line, without control characters."""
    line = _CONTROL.sub(" ", text[: 4 * LONGEST_CAPTION]).strip()
    return line if len(line) <= LONGEST_CAPTION else line[: LONGEST_CAPTION - 1].rstrip() + "…"
