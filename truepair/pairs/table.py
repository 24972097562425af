"""The pair table: a directory in which a pair is a row for ever, and everything known about it is a column."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from truepair.errors import UserError
from truepair.pairs import columns
from truepair.pairs.columns import Column, StringLists, Strings, Values

VERSION = 1
PAIRS = "pairs.parquet"
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)  # one cannot be made
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("source", pa.int32()),  # index into table.json's sources
        ("offset", pa.int64()),  # tar: byte offset of the image; parquet: row in the file; folder: -1
        ("size", pa.int64()),  # bytes of the image
        ("path", pa.string()),  # folder: path below the source; tar: member name
        ("caption", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha", pa.string()),  # first 128 bits of the SHA-256 of the image bytes, hexadecimal
    ]
)


@dataclass(frozen=True)
class Source:
    """Where image bytes lie: a tar, a folder, or a Parquet file with a bytes column."""

    path: str  # absolute, or relative to the table's directory when inside it
    kind: str  # "tar" | "folder" | "parquet"
    column: str = ""  # parquet: the bytes column


@dataclass
class PairTable:
    """An opened pair table. Columns are mapped on first use; images are read in place, from the user's own files."""

    path: Path
    sources: list[Source]
    caption_column: str = "caption"  # the caption column in force (corrupting or rewriting captions adds another)
    made: dict[str, Any] = field(default_factory=dict)  # column name -> how it was made

    @classmethod
    def open(cls, path: str | Path) -> "PairTable":
        """Open the table in directory `path`; raises UserError if there is none."""
        path = Path(path)
        try:
            meta = json.loads((path / "table.json").read_text())
            sources = [Source(**source) for source in meta["sources"]]
        except (FileNotFoundError, NotADirectoryError):
            inside = sorted(file.parent.name for file in path.glob("*/table.json"))
            hint = "make one with: truepair index SOURCE --out TABLE"
            hint = f"it holds some: {', '.join(str(path / name) for name in inside[:5])}" if inside else hint
            raise UserError(f"{path} is not a pair table (no table.json); {hint}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path / 'table.json'} cannot be read: {error!r}") from None
        if meta.get("version") != VERSION:
            raise UserError(
                f"{path} is a pair table of version {meta.get('version')}; this truepair reads version {VERSION}"
            )
        if not (path / PAIRS).is_file():
            raise UserError(f"{path} has a table.json but no {PAIRS}; index it again")
        return cls(path, sources, meta["caption_column"], meta["made"])

    def save(self) -> None:
        """Write table.json, atomically."""
        meta = {
            "version": VERSION,
            "rows": len(self),
            "caption_column": self.caption_column,
            "sources": [asdict(source) for source in self.sources],
            "made": self.made,
        }
        partial = self.path / f".table.json.partial-{os.getpid()}"
        partial.write_text(json.dumps(meta, indent=1) + "\n")
        partial.replace(self.path / "table.json")

    @cached_property
    def _rows(self) -> int:
        return int(pq.read_metadata(self.path / PAIRS).num_rows)

    def __len__(self) -> int:
        return self._rows

    # -- columns ---------------------------------------------------------------------------------------------------

    @property
    def column_names(self) -> list[str]:
        """Names of the added columns (those under columns/)."""
        return sorted(file.stem for file in (self.path / "columns").glob("*.parquet"))

    def parquet(self, name: str) -> Path:
        """The Parquet file that holds column `name`."""
        if name in SCHEMA.names:
            return self.path / PAIRS
        file = self.path / "columns" / f"{name}.parquet"
        if not file.is_file():
            known = ", ".join([*SCHEMA.names, *self.column_names])
            raise UserError(f"pair table {self.path} has no column {name!r}; it has {known}")
        return file

    def column(self, name: str) -> Column:
        """Column `name` as a memory-mapped array (n,) or (n, d), `Strings` or `StringLists`."""
        if name not in self._mapped:
            self._mapped[name] = columns.open_column(self.parquet(name), name)
            if len(self._mapped[name]) != len(self):
                raise UserError(f"{self.parquet(name)} has {len(self._mapped[name])} rows, the table {len(self)}")
        return self._mapped[name]

    @cached_property
    def _mapped(self) -> dict[str, Column]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}  # to be mapped anew

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Column `name`, which must be numeric or boolean. "A@B" is A of the row that B names (negative: its own).

        After `truepair corrupt`, "label@caption_from" is the label that belongs to the caption a row has now.
        """
        what, at, where = name.partition("@")
        if at:
            if name not in self._mapped:
                other = self.numbers(where)
                self._mapped[name] = self.numbers(what)[np.where(other < 0, np.arange(len(other)), other)]
            return self._mapped[name]  # type: ignore[return-value]
        values = self.column(name)
        if not isinstance(values, np.ndarray):
            raise UserError(f"column {name!r} of {self.path} holds text, numbers are needed")
        return values

    def strings(self, name: str) -> Strings:
        """Column `name`, which must hold one string a row."""
        values = self.column(name)
        if not isinstance(values, Strings):
            raise UserError(f"column {name!r} of {self.path} does not hold strings")
        return values

    def captions(self, name: str = "") -> StringLists:
        """The captions of every row, from the column in force or from `name`."""
        values = self.column(name or self.caption_column)
        if not isinstance(values, StringLists):
            raise UserError(f"column {name or self.caption_column!r} of {self.path} does not hold lists of captions")
        return values

    def groups(self, name: str) -> npt.NDArray[np.int64]:
        """An integer per row (n,), equal exactly where column `name` is equal; `groups("sha")`: identical images."""
        return columns.codes(self.parquet(name), name)

    def add_column(self, name: str, values: Values | Iterator[Values], made: dict[str, Any]) -> None:
        """Add or replace column `name` (n rows, in row order); `made` says how, and is kept in table.json.

        An iterator of pieces is written as it comes (`columns.stream_parquet`), so that no column need fit in memory.
        """
        if name in SCHEMA.names:
            raise UserError(f"column {name!r} belongs to the index and cannot be replaced; choose another name")
        file = self.path / "columns" / f"{name}.parquet"
        if isinstance(values, Iterator):
            columns.stream_parquet(file, name, values, len(self))
        elif len(values) != len(self):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(self)} rows")
        else:
            columns.write_parquet(file, {name: values})
        self._mapped.pop(name, None)
        self.made[name] = made
        self.save()

    def derive(self, out: str | Path, *, share: bool = False) -> "PairTable":
        """A new table in the directory `out` with the same rows, columns and sources; images are not touched.

        `out` appears when the table is whole (`new_folder`, which says what `out` may be). `share`: both tables have
        the same files of columns (hard links) where the file system can, for tables that nobody else writes to;
        `add_column` gives a table a file of its own.
        """
        out, sources = Path(out), self._absolute_sources()
        with new_folder(out) as staging:
            (staging / "columns").mkdir()
            for file in [self.path / PAIRS, *(self.path / "columns").glob("*.parquet")]:
                (_link if share else shutil.copy2)(file, staging / file.relative_to(self.path))
            PairTable(staging, sources, self.caption_column, self.made).save()
        return PairTable(out, sources, self.caption_column, dict(self.made))

    def reading_images_of(self, other: "PairTable") -> "PairTable":
        """This table with the images where `other`, which has the same rows, finds them; nothing is written."""
        return replace(self, sources=other._absolute_sources())

    # -- image bytes -----------------------------------------------------------------------------------------------

    def _absolute_sources(self) -> list[Source]:
        return [replace(source, path=str(self.source_path(i))) for i, source in enumerate(self.sources)]

    def source_path(self, source: int) -> Path:
        """Absolute path of a source (relative ones are stored below the table's directory)."""
        return (self.path / self.sources[source].path).absolute()

    def image_bytes(self, row: int) -> bytes:
        """The bytes of a row's image file, read in place. Raises OSError if the source moved or shrank."""
        source = int(self.numbers("source")[row])
        size, offset = int(self.numbers("size")[row]), int(self.numbers("offset")[row])
        match self.sources[source].kind:
            case "tar":
                data = os.pread(_descriptor(str(self.source_path(source))), size, offset)
            case "folder":
                data = (self.source_path(source) / self.strings("path")[row]).read_bytes()
            case "parquet":
                data = _parquet_value(str(self.source_path(source)), self.sources[source].column, offset)
            case kind:
                raise UserError(f"source {self.sources[source].path} has unknown kind {kind!r}")
        if len(data) != size:
            raise OSError(
                f"{self.source_path(source)} gave {len(data)} bytes of {size}: it changed since it was indexed"
            )
        return data


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which gets the name `out` when the block ends well and is removed when it does not.

    It lies beside `out`, as `.NAME.partial-PID`. Raises UserError if `out` is a file or holds anything, or if the
    folder cannot be made.
    """
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file, a table needs a folder; choose another --out")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{out} exists and is not empty; choose another --out or remove it")
    staging = target.parent / f".{target.name}.partial-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process that had this number
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write the table {out}: {error.strerror} ({staging})") from None
    try:
        yield staging
        staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    """A second name for the file; a copy of it on another file system, or one without hard links."""
    try:
        to.hardlink_to(file.resolve())  # of a symbolic link it would be one more of these
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        shutil.copy2(file, to)


@lru_cache(maxsize=256)
def _opened(path: str) -> Any:
    return Path(path).open("rb", buffering=0)  # closed by the garbage collector when it leaves the cache


def _descriptor(path: str) -> int:
    return int(_opened(path).fileno())


@lru_cache(maxsize=4)
def _row_group(path: str, column: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path, memory_map=True) as file:
        return file.read_row_group(group, columns=[column]).column(0)


@lru_cache(maxsize=256)
def _row_group_starts(path: str) -> npt.NDArray[np.int64]:
    meta = pq.read_metadata(path)
    return np.cumsum([0] + [meta.row_group(i).num_rows for i in range(meta.num_row_groups)])


def _parquet_value(path: str, column: str, row: int) -> bytes:
    starts = _row_group_starts(path)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    value = _row_group(path, column, group)[row - int(starts[group])].as_py()
    return bytes(value["bytes"] if isinstance(value, dict) else value)
