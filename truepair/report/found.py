"""The part of a run page about single searches: test pictures, and which captions each run holds nearest to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.evaluate.examples import Retrieved, read_retrieved
from truepair.pairs.table import PairTable
from truepair.report.record import RunRecord
from truepair.report.thumbnails import MOST_CAPTIONS, Picture, clipped, picture

SHOWN = 12  # pictures


@dataclass(frozen=True)
class Answer:
    """What a run finds for a picture. found: (caption, describes the picture), nearest first, hostile until escaped."""

    label: str
    colour: int
    rank: int
    found: list[tuple[str, bool]]


@dataclass(frozen=True)
class Search:
    """A test picture with its own captions and what each run finds for it."""

    row: int
    picture: Picture
    captions: list[str]
    answers: list[Answer]


@dataclass(frozen=True)
class Searches:
    """The part of the page."""

    summary: str
    shown: list[Search]


@dataclass(frozen=True)
class _Run:
    name: str
    number: int
    table: Path
    found: dict[int, Retrieved]


def searches(records: Sequence[RunRecord], names: Sequence[str], count: int = SHOWN) -> Searches | None:
    """Pictures that all runs with an evaluation searched by, in the same table; None where there is nothing to show.

    Those come first on which the runs differ; then as many found as not found, drawn without looking at them.
    """
    runs = [run for run in map(_read, records, names, range(len(records))) if run is not None]
    runs = [run for run in runs if run.table == runs[0].table]
    if not runs:
        return None
    try:
        table = PairTable.open(runs[0].table)
    except UserError as error:
        records[runs[0].number].notes.append(f"Searches are not shown: {error}.")
        return None
    asked = set.intersection(*(set(run.found) for run in runs))
    rows = [row for row in sorted(asked) if 0 <= row < len(table)]
    if not rows:
        return None
    first = np.array([[run.found[row].rank == 1 for row in rows] for run in runs])  # (runs, pictures)
    hits = [
        f"{int(mine.sum())}{f' with {run.name}' if len(runs) > 1 else ''}"
        for run, mine in zip(runs, first, strict=True)
    ]
    summary = (
        f"Of {len(rows)} test pictures the caption held nearest is a right one for {', '.join(hits)}. Beneath each of "
        "these, what it is called, and the captions held nearest to it."
    )
    captions, shown = table.captions(), []
    for row in (rows[place] for place in _chosen(first, count)):
        answers = [_answer(run.found[row], run) for run in runs]
        own = [clipped(text) for text in captions[row][:MOST_CAPTIONS]]
        shown.append(Search(row, picture(table, row), own, answers))
    return Searches(summary, shown)


def _chosen(first: NDArray[np.bool_], count: int) -> list[int]:
    """Places of the pictures to show; first: (runs, pictures), whether the right caption was the nearest."""
    order = np.random.Generator(np.random.Philox(0)).permutation(first.shape[1])
    right = order[np.all(first, axis=0)[order]]
    wrong = order[np.all(~first, axis=0)[order]]
    split = order[~np.isin(order, [*right, *wrong])][: count // 2]
    rest = count - len(split)
    take = min(len(right), max(rest // 2, rest - len(wrong)))
    return [*split.tolist(), *right[:take].tolist(), *wrong[: rest - take].tolist()]


def _read(record: RunRecord, name: str, number: int) -> _Run | None:
    try:
        kept = read_retrieved(record.folder)
    except UserError as error:
        record.notes.append(f"Searches are not shown: {error}.")
        return None
    return None if kept is None else _Run(name, number, kept[0], {one.row: one for one in kept[1]})


def _answer(one: Retrieved, run: _Run) -> Answer:
    found = [(clipped(text), right) for text, right in zip(one.captions, one.right, strict=True)]
    return Answer(run.name, run.number, one.rank, found)
