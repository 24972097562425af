"""A column of a pair table: Parquet at rest, a memory-mapped array in use."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from truepair.errors import UserError

STREAM_ROWS = 65_536


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


def open_column(parquet: Path, field: str) -> Column:
    """The column `field` of a Parquet file as memory-mapped arrays, which are made beside the file on first use.

    Numbers and booleans give an array (n,), fixed-size lists (n, d), strings `Strings`, lists of strings `StringLists`.
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
            batches = (batch.column(0) for batch in file.iter_batches(STREAM_ROWS, columns=[field]))
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
    fixed = pa.types.is_fixed_size_list(kind)
    dtype = np.dtype("bool") if pa.types.is_boolean(kind) else (kind.value_type if fixed else kind).to_pandas_dtype()
    shape = (rows, kind.list_size) if fixed else (rows,)
    out: npt.NDArray[Any] = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype, shape)
    at = 0
    for array in arrays:
        values = (array.flatten() if fixed else array).to_numpy(zero_copy_only=False)
        out[at : at + len(array)] = values.reshape(len(array), *shape[1:])
        at += len(array)


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


def write_parquet(path: Path, columns: dict[str, Sequence[Any] | npt.NDArray[Any] | pa.Array]) -> None:
    """Write columns of equal length as one Parquet file, whole or not at all. (n, d) arrays become fixed-size lists."""
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        pq.write_table(table, partial, row_group_size=STREAM_ROWS)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _arrow(values: Sequence[Any] | npt.NDArray[Any] | pa.Array) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
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
