"""Subsets of a table: lists of rows, which filter a run without touching a shard."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from truepair.errors import UserError
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PairTable

UID = np.dtype("u8,u8")  # DataComp's form of a 128-bit identifier
HEX = np.isin(np.arange(256), list(b"0123456789abcdefABCDEF"))  # (256,) bytes that are hexadecimal digits


def rows_in_use(table: PairTable, keep: str = "", max_p_noise: float = 1.0) -> npt.NDArray[np.int64]:
    """Ascending row numbers that pass both filters.

    keep: a Parquet file with an integer column `row`, or a .npy of u8,u8 uids as DataComp writes them (`uids`).
    max_p_noise: rows whose column p_noise is greater are left out; 1 keeps all and needs no such column.
    Raises UserError if a row does not exist or nothing is left.
    """
    rows = np.arange(len(table))
    if keep:
        rows = read_subset(table, Path(keep))
    if max_p_noise < 1:
        rows = rows[table.numbers("p_noise")[rows] <= max_p_noise]
    if not len(rows):
        raise UserError(f"no pair of {table.path} is left to use (keep={keep!r}, max_p_noise={max_p_noise})")
    return rows


def read_subset(table: PairTable, path: Path) -> npt.NDArray[np.int64]:
    """Ascending, distinct row numbers of a subset file (`rows_in_use`)."""
    try:
        if path.suffix == ".npy":
            wanted = np.lib.format.open_memmap(path, mode="r")
            if wanted.dtype != UID:
                raise UserError(f"{path} holds {wanted.dtype}, not DataComp's u8,u8 uids")
            return np.flatnonzero(np.isin(uids(table), wanted))
        column = pq.read_table(path, columns=["row"]).column("row")
        if not pa.types.is_integer(column.type):
            raise UserError(f"the column `row` of subset {path} holds {column.type}, not whole numbers")
        if column.null_count:
            raise UserError(f"the column `row` of subset {path} is empty in {column.null_count} of {len(column)} lines")
        rows = np.unique(column.cast(pa.int64()).to_numpy())
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"subset {path} cannot be read (Parquet with a column `row`, or .npy of uids): {first_line}"
        ) from None
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(table)):
        wrong = int(rows[0] if rows[0] < 0 else rows[-1])
        raise UserError(f"subset {path} names row {wrong}, {table.path} has rows 0 to {len(table) - 1}")
    return rows


def write_subset(table: PairTable, rows: npt.NDArray[np.int64], path: str | Path) -> None:
    """Write row numbers as Parquet (column `row`), or, for a name ending in .npy, as sorted u8,u8 uids."""
    path = Path(path)
    if path.suffix == ".npy":
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.sort(uids(table)[rows]))
        partial.replace(path)
    else:
        write_parquet(path, {"row": np.sort(rows)})


def uids(table: PairTable) -> npt.NDArray[np.void]:
    """(n,) u8,u8: 128 bits that name each row, high half first.

    They are those of the column `uid` if the table has one, else of the image hash `sha`. DataComp's uids stand in its
    metadata and are no hash of the image, so its subsets need the column: `truepair index --extra-columns uid`.
    Raises UserError if a value is not 32 hexadecimal digits.
    """
    name = "uid" if "uid" in table.column_names else "sha"
    text = table.strings(name)
    wrong = np.diff(text.ends, prepend=0) != 32
    if not wrong.any():
        wrong = ~HEX[text.blob].reshape(-1, 32).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"row {row} of {table.path} has the {name} {text[row][:40]!r}; subsets by uid need 32 hexadecimal digits"
        )
    words = np.frombuffer(bytes.fromhex(text.blob.tobytes().decode("ascii")), dtype=">u8").reshape(-1, 2)
    out = np.empty(len(words), UID)
    out["f0"], out["f1"] = words[:, 0], words[:, 1]
    return out
