"""The part of a run page about the captions that the run wrote itself, for pairs it doubted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.pairs.table import SCHEMA, PairTable
from truepair.report.record import RunRecord
from truepair.report.thumbnails import Picture, clipped, picture

COLUMN = "synthetic"
SHOWN = 10  # pairs
MOST_CAPTIONS = 2  # raw ones of a pair

Numbers = NDArray[Any]


@dataclass(frozen=True)
class CompletedPair:
    """A pair as the page shows it, with the caption written for it; all text clipped, hostile until escaped.

    raw: what it had; before: what it had before captions were corrupted, where that differs.
    score, raw_score: cosine of the image with the synthetic and with the best raw caption.
    """

    row: int
    picture: Picture
    synthetic: str
    raw: list[str]
    before: list[str]
    concepts: list[str]
    p_noise: float
    score: float
    raw_score: float


@dataclass(frozen=True)
class Completion:
    """What one run wrote."""

    label: str
    colour: int
    summary: list[str]  # sentences
    pairs: list[CompletedPair]


def completion(record: RunRecord, label: str, number: int, count: int = SHOWN) -> Completion | None:
    """The captions of a run that wrote some, `count` pairs drawn without looking at them; None for any other run."""
    folder = record.folder / "completed"
    if not (folder / "table.json").is_file():
        return None
    try:
        table = PairTable.open(folder)
        written = np.flatnonzero(table.captions(COLUMN).counts)
        scores = table.numbers(f"{COLUMN}_score"), table.numbers(f"{COLUMN}_raw_score"), table.numbers("p_noise")
        drawn = np.random.Generator(np.random.Philox(0)).permutation(written)[:count]
        pairs = [_pair(table, int(row), scores) for row in np.sort(drawn)]
    except (UserError, OSError, pa.ArrowException) as error:
        record.notes.append(f"The captions that the run wrote are not shown: {error}.")
        return None
    doubted = int((scores[2] >= record.config.completion.min_p_noise).sum())
    epochs = record.config.completion.start
    said = [f"After {epochs} epochs captions were written and kept for {len(written):,} of {doubted:,} doubted pairs."]
    if len(written):
        score, raw_score = (float(np.nanmean(values[written])) for values in scores[:2])
        said.append(
            f"To the model itself they are {'more' if score > raw_score else 'less'} like their images than the best "
            f"captions there were: cosine {score:.2f} against {raw_score:.2f} on average."
        )
        said.append(f"Here are {len(pairs)}, drawn at random.")
    return Completion(label, number, said, pairs)


def _pair(table: PairTable, row: int, scores: tuple[Numbers, Numbers, Numbers]) -> CompletedPair:
    raw, known = table.captions()[row], table.caption_column in SCHEMA.names
    before = raw if known else table.captions("caption")[row]
    names = f"{COLUMN}_concepts"
    concepts = table.captions(names)[row] if names in table.column_names else []
    return CompletedPair(
        row=row,
        picture=picture(table, row),
        synthetic=clipped(table.captions(COLUMN)[row][0]),
        raw=[clipped(text) for text in raw[:MOST_CAPTIONS]],
        before=[clipped(text) for text in before[:1]] if before != raw else [],
        concepts=[clipped(text) for text in concepts],
        p_noise=float(scores[2][row]),
        score=float(scores[0][row]),
        raw_score=float(scores[1][row]),
    )
