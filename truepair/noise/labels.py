"""A person's verdicts on pairs, read from labels.csv: every line is checked, and what does not count is told."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError

Rows = NDArray[np.int64]
Keys = Callable[[Rows], list[str]]

VERDICTS = ("keep", "mismatch", "unsure")  # what the column `label` says
COLUMNS = ("row", "key", "label")
PAGE_COLUMNS = ("p_noise", "stratum")  # which the audit page writes for whoever reads the file; no label needs them
DELIMITERS = ",;\t"  # where the comma is the decimal point, spreadsheets write semicolons
LONGEST_LINE = 1 << 20  # characters
LONGEST_HEADER = 1 << 16
MOST_DIGITS = 18  # of a row number: any more might not fit 64 bits
BATCH = 1 << 16  # lines whose keys are compared at a time


@dataclass(frozen=True)
class Labels:
    """Verdicts on m pairs, and the u pairs on which the person could not decide. No row is in both.

    rows: (m,) int64 row numbers of the table, ascending, each once. noisy: (m,) bool, True = mismatch, False = keep.
    unsure: (u,) int64 row numbers, ascending, each once.
    told: sentences for the user: what was found that does not count, and how much of it.
    """

    rows: Rows
    noisy: NDArray[np.bool_]
    unsure: Rows
    told: tuple[str, ...] = ()

    def among(self, rows: Rows) -> Labels:
        """The labels of the given `rows` (any order) alone; `told` gains how many others there are.

        For the rows of a drawn sample. Pairs that a person picked (the worst of a page, the striking ones) are no
        random sample of their stratum and would bias noise rate and recalibration alike: neither should be given them.
        """
        judged, undecided = np.isin(self.rows, rows), np.isin(self.unsure, rows)
        others = int(np.count_nonzero(~judged) + np.count_nonzero(~undecided))
        told = (f"{_many(others, 'label')} outside the drawn sample: a chosen pair stands for no other, not counted",)
        return replace(
            self,
            rows=self.rows[judged],
            noisy=self.noisy[judged],
            unsure=self.unsure[undecided],
            told=self.told + told if others else self.told,
        )


def read_labels(path: Path, n: int, keys: Keys | None = None) -> Labels:
    """Labels of a table of `n` rows from a CSV file with a header that names row, label and, if it can be, key.

    label: keep | mismatch | unsure, in any case. A line with an empty label is a pair not judged yet. Of several
    labels of one row the last counts. Columns may stand in any order; others are ignored, which is told but of those
    that the audit page writes. UTF-8, with or without a
    byte order mark; commas, semicolons or tabs.
    keys: gives the table's keys of (m,) rows, which come in any order and may repeat. With it, each key in the file
    must be that of its row; an empty key (or no column key) leaves its row unchecked, and `told` says so.
    Memory: some 30 bytes a label, whatever else the file holds.

    Raises UserError, naming the line: a file that cannot be read or is not such a CSV, a row outside the table, an
    unknown label, a key of another row, or no label at all.
    """
    tally: Counter[str] = Counter()
    rows, verdicts = array("q"), bytearray()
    keyed: list[_Line] = []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for line in _labelled(file, path, n, tally):
                rows.append(line.row)
                verdicts.append(line.verdict)
                if keys and line.key:
                    keyed.append(line)
                    if len(keyed) == BATCH:
                        _check_keys(keyed, keys, path)
                        keyed.clear()
            if keys and keyed:
                _check_keys(keyed, keys, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"{path} holds no label: mark pairs on the audit page, or write lines like 17,key,mismatch")

    latest_first = np.frombuffer(rows, dtype=np.int64)[::-1]
    unique, at = np.unique(latest_first, return_index=True)
    verdict = np.frombuffer(verdicts, dtype=np.uint8)[::-1][at]
    tally["repeated"] = len(latest_first) - len(unique)
    if not keys:
        tally["unchecked"] = 0
    decided = verdict != VERDICTS.index("unsure")
    noisy = verdict[decided] == VERDICTS.index("mismatch")
    return Labels(unique[decided], noisy, unique[~decided], _told(tally))


class _Line(NamedTuple):
    number: int
    row: int
    key: str
    verdict: int


def _labelled(file: TextIO, path: Path, n: int, tally: Counter[str]) -> Iterator[_Line]:
    """The lines that hold a label; what is passed over is counted in `tally`."""
    head = file.readline(LONGEST_LINE)
    if head.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in head:
        raise UserError(f"{path} is not text in UTF-8: save it as CSV UTF-8 (in a spreadsheet: Save as)")
    if len(head) > LONGEST_HEADER:
        raise UserError(
            f"{path}, line 1: longer than {LONGEST_HEADER:,} characters: it must be the header row,key,label"
        )
    delimiter = max(DELIMITERS, key=head.count)
    names = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]
    row_at, label_at = (_column(names, name, path) for name in ("row", "label"))
    key_at = _column(names, "key", path) if "key" in names else None
    tally["columns"] = len([name for name in names if name not in (*COLUMNS, *PAGE_COLUMNS)])

    for number, cells in _records(file, path, delimiter):
        if not any(map(str.strip, cells)):
            tally["blank"] += 1
            continue
        if len(cells) > len(names) and any(map(str.strip, cells[len(names) :])):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells under a header of {len(names)}: "
                "put a cell that holds a comma or a quote in double quotes"
            )
        if len(cells) <= max(row_at, label_at):
            raise UserError(f"{path}, line {number}: the line ends before its row or label: complete or delete it")
        row = _row(cells[row_at].strip(), n, path, number)
        label = cells[label_at].strip().lower()
        if not label:
            tally["unjudged"] += 1
            continue
        if label not in VERDICTS:
            raise UserError(f"{path}, line {number}: unknown label {_short(label)}: it must be {', '.join(VERDICTS)}")
        key = cells[key_at] if key_at is not None and key_at < len(cells) else ""
        tally["unchecked"] += not key
        yield _Line(number, row, key, VERDICTS.index(label))


def _records(file: TextIO, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records after the header, each with the line it begins in; line breaks within quotes are kept."""

    def lines() -> Iterator[str]:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and line[-1] not in "\r\n":
                raise UserError(
                    f"{path}, line {reader.line_num + 2}: longer than {LONGEST_LINE:,} characters: not a line of labels"
                )
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 2  # the header was line 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: not CSV ({error}): close every double quote, and write one within a cell twice"
            ) from error
        if cells is None:
            return
        yield number, cells


def _column(names: list[str], name: str, path: Path) -> int:
    """Place of the column `name`, which the header must name once."""
    if names.count(name) != 1:
        fault = f"names the column {name} twice" if name in names else f"names no column {name}"
        raise UserError(f"{path}, line 1: the header {fault}: it must be row,key,label")
    return names.index(name)


def _row(text: str, n: int, path: Path, number: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise UserError(f"{path}, line {number}: {_short(text)} is no row number: it must be 0 to {n - 1}")
    row = int(text)
    if row >= n:
        raise UserError(
            f"{path}, line {number}: there is no row {row}: the table has rows 0 to {n - 1}; are the labels of another?"
        )
    return row


def _check_keys(lines: list[_Line], keys: Keys, path: Path) -> None:
    """Raise UserError for the first line whose key is not that of its row."""
    expected = keys(np.array([line.row for line in lines], dtype=np.int64))
    for line, own in zip(lines, expected, strict=True):
        if line.key != own:
            raise UserError(
                f"{path}, line {line.number}: row {line.row} of the table has the key {_short(own)}, not "
                f"{_short(line.key)}: the labels are of another table, or a spreadsheet or an encoding changed the "
                "keys; delete the column key to go by row numbers alone"
            )


def _told(tally: Counter[str]) -> tuple[str, ...]:
    sentences = (
        ("repeated", "label", "overruled by a later one of the same row"),
        ("unjudged", "line", "without a label: not judged yet"),
        ("blank", "blank line", "passed over"),
        ("unchecked", "label", "without a key: taken by row number alone"),
        ("columns", "column", "besides row, key and label: ignored"),
    )
    return tuple(f"{_many(tally[name], noun)} {rest}" for name, noun, rest in sentences if tally[name])


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _short(text: str) -> str:
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}…"
