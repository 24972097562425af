"""Rows of Parquet, CSV, TSV and JSONL files as a stream of dictionaries, damaged rows named."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from truepair.errors import UserError
from truepair.pairs.sources.sample import Unusable, parse_json

PARQUET_ROWS = 256  # rows held at once: they may carry megabytes of image each
BLOCK = 8 << 20  # bytes of a CSV file parsed at once; a row must fit in it
JSONL_LOOK = 100  # rows looked at for the names of a JSONL file's fields

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | Unusable]]


def parquet_rows(path: Path, columns: list[str]) -> Rows:
    """(row number, row) of a Parquet file. Raises pyarrow's errors where the file is damaged."""
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False):
            for row in batch.select(columns).to_pylist():
                yield number, row
                number += 1


def csv_columns(path: Path) -> list[str]:
    """Column names in the first line of a CSV or TSV file. Raises UserError if one comes twice or none is there."""
    delimiter, line = _header(path)
    columns = next(csv.reader([line], delimiter=delimiter), [])
    if not columns or len(set(columns)) < len(columns):
        raise UserError(f"{path}: the first line must name the columns, each once; it is {line[:200]!r}")
    return columns


def csv_rows(path: Path, columns: list[str]) -> Rows:
    """(row number, row of texts) of a CSV or TSV file; rows with too few or too many cells follow as Unusable.

    Quoted cells may hold line breaks. A cell that is not UTF-8 is left as bytes.
    """
    damaged: list[Unusable] = []

    def skip(row: pc.InvalidRow) -> str:
        damaged.append(Unusable("unreadable row", f"{row.actual_columns} cells of {row.expected_columns}"))
        return "skip"

    delimiter, _ = _header(path)
    names = csv_columns(path)
    reader = pc.open_csv(
        path,
        pc.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names, skip_rows=1),
        pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        pc.ConvertOptions(
            include_columns=columns,
            column_types={name: pa.binary() for name in names},
            strings_can_be_null=False,
        ),
    )
    number = 0
    for batch in reader:
        for row in batch.to_pylist():
            yield number, {name: _decoded(cell) for name, cell in row.items()}
            number += 1
        while damaged:
            yield number, damaged.pop(0)
            number += 1


def jsonl_columns(path: Path) -> list[str]:
    """Names of the fields in the first rows of a JSONL file."""
    names: dict[str, None] = {}
    for number, row in jsonl_rows(path):
        if number >= JSONL_LOOK:
            break
        names |= dict.fromkeys(row if isinstance(row, dict) else ())
    return list(names)


def jsonl_rows(path: Path) -> Rows:
    """(line number from 0, row) of a JSONL file; a line that is no object is Unusable, blank lines are passed over."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                if line.strip():
                    yield number, parse_json(line)
            except Unusable as unusable:
                yield number, unusable


def _header(path: Path) -> tuple[str, str]:
    """(delimiter, first line): open_clip writes tabs into .csv files, so the line decides, not the suffix."""
    with path.open("rb") as file:
        line = file.readline(1 << 20).decode("utf-8-sig").rstrip("\r\n")
    return max("\t,;|", key=line.count), line


def _decoded(cell: bytes) -> str | bytes:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell
