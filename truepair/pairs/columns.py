"""A column of a pair table: Parquet at rest, a memory-mapped array in use."""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from truepair.errors import UserError

STREAM_ROWS = 65_536
STREAM_BYTES = 1 << 26  # rows of wide columns are read and written fewer at a time


@dataclass(frozen=True)
class Strings:
    """n strings as one UTF-8 blob and their end offsets, both memory-mapped."""

    blob: npt.NDArray[np.uint8]  # (bytes,)
    ends: npt.NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.blob[start : int(self.ends[row])].tobytes().decode("utf-8")


@dataclass(frozen=True)
class StringLists:
    """n lists of strings (the captions of n pairs)."""

    strings: Strings
    ends: npt.NDArray[np.int64]  # (n,) end of each row's list in `strings`

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(n,) strings in each row's list."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> list[str]:
        start = int(self.ends[row - 1]) if row else 0
        return [self.strings[i] for i in range(start, int(self.ends[row]))]


Column = npt.NDArray[Any] | Strings | StringLists
Values: TypeAlias = Sequence[Any] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray


def open_column(parquet: Path, field: str) -> Column:
    """The column `field` of a Parquet file as memory-mapped arrays, which are made beside the file on first use.

    Numbers and booleans give an array (n,), fixed-size lists (n, d), those of fixed-size lists (n, r, d) and so on,
    strings `Strings`, lists of strings `StringLists`. Raises UserError for columns of any other kind.
    The arrays are rebuilt when the file changes; if its folder cannot be written they go to the temporary folder.
    """
    stat = parquet.stat()
    stamp = f"{parquet.stem}-{field}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    nearby = parquet.parent / ".mmap" / stamp
    unique = hashlib.sha256(str(parquet.resolve()).encode()).hexdigest()[:16]
    shared = Path(tempfile.gettempdir()) / f"truepair-mmap-{os.getuid()}" / f"{unique}-{stamp}"
    for folder in (nearby, shared):
        if folder.is_dir():
            return _map(folder)
    try:
        _build(parquet, field, nearby)
        return _map(nearby)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
    _build(parquet, field, shared)
    return _map(shared)


def _build(parquet: Path, field: str, folder: Path) -> None:
    """Stream one Parquet column into raw arrays, renamed into place when whole (several ranks may do so at once)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        with pq.ParquetFile(parquet, memory_map=True) as file:
            if field not in file.schema_arrow.names:
                raise UserError(f"{parquet} has no column {field!r}; it has {', '.join(file.schema_arrow.names)}")
            kind = file.schema_arrow.field(field).type
            batches = (batch.column(0) for batch in file.iter_batches(_stream_rows(kind), columns=[field]))
            _write(kind, batches, file.metadata.num_rows, partial)
        partial.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(kind: pa.DataType, arrays: Iterator[pa.Array], rows: int, folder: Path) -> None:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    text = kind.value_type if listed else kind
    if pa.types.is_string(text) or pa.types.is_large_string(text):
        _write_strings(arrays, folder, listed)
        return
    shape, scalar = _shape(kind)
    dtype = np.dtype("bool") if pa.types.is_boolean(scalar) else scalar.to_pandas_dtype()
    if np.dtype(dtype).kind == "O":
        raise UserError(f"{folder.parent.parent}: a column of {kind} cannot be mapped; numbers, strings or lists can")
    out: npt.NDArray[Any] = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype, (rows, *shape))
    at = 0
    for array in arrays:
        count = len(array)
        for _ in shape:
            array = array.flatten()
        out[at : at + count] = array.to_numpy(zero_copy_only=False).reshape(count, *shape)
        at += count


def _shape(kind: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """The sizes of nested fixed-size lists, the outermost first, and what they hold: () and `kind` for plain values."""
    sizes: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        sizes, kind = (*sizes, kind.list_size), kind.value_type
    return sizes, kind


def _stream_rows(kind: pa.DataType) -> int:
    """Rows to read or write at a time: 65,536, and at most 64 MiB of fixed-size lists."""
    width = 8 * math.prod(_shape(kind)[0])
    return max(1, min(STREAM_ROWS, STREAM_BYTES // max(width, 1)))


def _write_strings(arrays: Iterator[pa.Array], folder: Path, listed: bool) -> None:
    """Append the text of every array to one blob, with int64 ends of strings and, for lists, of rows."""
    size = count = 0
    with (
        (folder / "blob.bin").open("wb") as blob,
        (folder / "ends.bin").open("wb") as ends,
        (folder / "lists.bin").open("wb") as lists,
    ):
        for array in arrays:
            if listed:
                array = array.fill_null([])
                counts = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
                (count + counts.cumsum()).tofile(lists)
                count += int(counts.sum())
                array = array.flatten()
            binary = array.fill_null("").cast(pa.large_binary())
            edges = np.frombuffer(binary.buffers()[1], np.int64)[binary.offset : binary.offset + len(binary) + 1]
            if len(binary):
                blob.write(memoryview(binary.buffers()[2] or b"")[edges[0] : edges[-1]])
                (size + edges[1:] - edges[0]).tofile(ends)
                size += int(edges[-1] - edges[0])
    (folder / "strings.json").write_text(json.dumps({"listed": listed}))


def _map(folder: Path) -> Column:
    if (folder / "values.npy").exists():
        values: npt.NDArray[Any] = np.load(folder / "values.npy", mmap_mode="r")
        return values
    strings = Strings(_raw(folder / "blob.bin", np.uint8), _raw(folder / "ends.bin", np.int64))
    if json.loads((folder / "strings.json").read_text())["listed"]:
        return StringLists(strings, _raw(folder / "lists.bin", np.int64))
    return strings


def _raw(path: Path, dtype: Any) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def write_parquet(path: Path, columns: dict[str, Values]) -> None:
    """Write columns of equal length as one Parquet file, whole or not at all. (n, d, …) arrays become nested lists."""
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    with whole(path) as partial:
        pq.write_table(table, partial, **_format(table.schema))


def stream_parquet(path: Path, name: str, values: Iterable[Values], rows: int) -> None:
    """Write one column of `rows` values that come piece by piece, whole or not at all; one piece is held at a time.

    Later pieces take the type of the first. Raises ValueError for pieces of another type, or of another length in all.
    """
    pieces = map(_arrow, values)
    first = next(pieces, None)
    if first is None:
        raise ValueError(f"column {name!r} has no values for {rows} rows")
    schema = pa.schema([(name, first.type)])
    options = _format(schema)
    size = options.pop("row_group_size")
    written = 0
    with whole(path) as partial:
        with pq.ParquetWriter(partial, schema, **options) as writer:
            for piece in itertools.chain([first], pieces):
                writer.write_table(pa.table([piece], schema), row_group_size=size)
                written += len(piece)
        if written != rows:
            raise ValueError(f"column {name!r} has {written} values for {rows} rows")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write, which gets the name `path` when the block ends well and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _format(schema: pa.Schema) -> dict[str, Any]:
    """Parquet options: features neither repeat nor compress, so trying to costs time only."""
    wide = any(_shape(kind)[0] for kind in schema.types)
    rows = min((_stream_rows(kind) for kind in schema.types), default=STREAM_ROWS)
    plain = {"use_dictionary": False, "compression": "none"} if wide and len(schema) == 1 else {}
    return {"row_group_size": rows, **plain}


def _arrow(values: Values) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        array = pa.array(values.reshape(-1))
        for size in reversed(values.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return array
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def codes(parquet: Path, field: str) -> npt.NDArray[np.int64]:
    """An integer per row (n,), equal exactly where the column's values are equal (lists: their joined text)."""
    column = pq.read_table(parquet, columns=[field], memory_map=True).column(0)
    if pa.types.is_list(column.type):
        column = pa.compute.binary_join(column, "\x1f")
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    values: npt.NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return values
