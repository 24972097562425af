"""A long pass over a table's rows: shared by ranks, killed at any moment, gone on with, ending in new columns."""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from truepair.errors import UserError
from truepair.losses.distributed import rank, world_size
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import SCHEMA, PairTable

CHUNK = 1024  # rows of a part file: what a kill may cost, and 10,000 files for 10 M rows
SKIPPED = "#skipped"  # column of a part: why a row was skipped, "" for the others; no table's column has such a name
NAME = re.compile(r"[A-Za-z][\w.-]{0,99}", re.ASCII)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Finished:
    """The new table, and why rows of it were skipped: how many for each reason."""

    table: PairTable
    skipped: dict[str, int]


class Parts:
    """What a pass has made so far, in part files of `chunk` rows each, in the folder OUT.parts beside the table OUT.

    Use, the same on every rank (`losses.distributed`):

        parts = Parts.open(table, out, {"NAME": made})
        for rows in parts.todo():
            parts.write(rows, {"NAME": values}, [(row, "unreadable image"), ...])
        finished = parts.finish("skipped-VERB.jsonl")

    A row's values must be a function of the row, the table and `made` alone, not of its chunk: then a pass that was
    killed and gone on with, by any number of ranks, ends in the very bytes of an undisturbed one.

    Attributes: `total`, `done` rows (of all ranks, when opened), `share` rows that this rank has still to do.
    """

    def __init__(self, table: PairTable, out: Path, makes: dict[str, dict[str, Any]], chunk: int) -> None:
        self.table, self.out, self.makes, self.chunk = table, out, makes, chunk
        self.folder = out.resolve().with_name(f"{out.resolve().name}.parts")
        self.total = len(table)
        self._chunks = -(-self.total // chunk)
        self._todo: list[int] = []

    @classmethod
    def open(
        cls,
        table: PairTable,
        out: Path,
        makes: dict[str, dict[str, Any]],
        *,
        overwrite: bool = False,
        chunk: int | None = None,
    ) -> "Parts":
        """Begin the pass over `table` that makes the table `out`, or go on with it.

        `makes`: the columns to add and how each is made, which goes into the new table; what is there must have been
        begun with the same. Columns that the table has already need `overwrite`. `chunk`: rows of a part, else CHUNK.
        Raises UserError for names that cannot be, for an `out` that is taken, and for parts of another pass.
        """
        for name in makes:
            _check(name, table, overwrite)
        parts = cls(table, out, makes, chunk or CHUNK)
        identity = {"columns": makes, "rows": parts.total, "images": _images(table), "chunk": parts.chunk}
        identity = json.loads(json.dumps(identity))
        target = out.resolve()
        if target.exists() and not target.is_dir():
            raise UserError(f"{out} is a file, a table needs a folder; choose another --out")
        if not parts._named() and target.is_dir() and any(target.iterdir()):
            raise UserError(f"{out} exists and is not empty; choose another --out or remove it")
        try:
            parts.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write beside {out}: {error.strerror} ({parts.folder})") from None
        begun = parts.folder / "pass.json"
        if begun.exists() and (any(parts.folder.glob("part-*")) or parts._named()):
            if different := _different(json.loads(begun.read_text(encoding="utf-8")), identity):
                raise UserError(f"{parts.folder} was begun with {different}; go on with that, or remove the folder")
        else:
            partial = parts.folder / f".pass.json.partial-{os.getpid()}"
            partial.write_text(json.dumps(identity), encoding="utf-8")
            partial.replace(begun)
        missing = [i for i in range(parts._chunks) if not parts._named() and not parts._file(i).exists()]
        parts._todo = _same_on_all_ranks(missing)
        return parts

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:07d}.parquet"

    def _rows(self, number: int) -> Rows:
        return np.arange(number * self.chunk, min((number + 1) * self.chunk, self.total))

    def _named(self) -> bool:
        """Whether the table is whole and has its name already: a kill came while the parts were removed."""
        return (self.folder / "whole").exists() and not (self.folder / "table").exists()

    @property
    def done(self) -> int:
        """Rows that were there when this process began."""
        return self.total - sum(len(self._rows(number)) for number in self._todo)

    @property
    def share(self) -> int:
        """Rows this rank has to do."""
        return sum(len(self._rows(number)) for number in self._todo[rank() :: world_size()])

    def todo(self) -> Iterator[Rows]:
        """The chunks this rank has still to do, as row numbers (m,), ascending."""
        for number in self._todo[rank() :: world_size()]:
            yield self._rows(number)

    def write(
        self, rows: Rows, columns: dict[str, npt.NDArray[Any] | pa.Array], skipped: Sequence[tuple[int, str]]
    ) -> None:
        """Keep a chunk of `todo`: m values a column, in the order of `rows`; and (row, reason) of those skipped.

        Skipped rows have values too: whatever is harmless. A part is whole or absent, on disk when this returns.
        """
        reasons = dict(skipped)
        part = self._file(int(rows[0]) // self.chunk)
        partial = part.with_name(f".{part.name}.{os.getpid()}")
        write_parquet(partial, columns | {SKIPPED: pa.array([reasons.get(row, "") for row in rows.tolist()])})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(part)

    def finish(self, log: str) -> Finished | None:
        """Make the table `out` of all parts, with the file `log` that names the skipped rows; then remove the parts.

        Rank 0 waits for the others and does it; they get None at once.
        """
        if world_size() > 1:
            dist.barrier()
        if rank():
            return None
        if self._named():
            table = PairTable.open(self.out)
            made = table.made[next(iter(self.makes))]
        else:
            table, made = self._assemble(log)
        for file in sorted(self.folder.iterdir(), reverse=True):  # "whole" and pass.json outlive the parts
            if file.name.startswith(("part-", ".")):
                file.unlink()
        (self.folder / "pass.json").unlink()
        shutil.rmtree(self.folder)
        return Finished(table, made["skipped"])

    def _assemble(self, log: str) -> tuple[PairTable, dict[str, Any]]:
        staging = self.folder / "table"
        for rest in [staging, *self.folder.glob(".table.partial-*")]:
            shutil.rmtree(rest, ignore_errors=True)  # of a kill at this place
        table = self.table.derive(staging)
        counts = self._note_skipped(staging / log, table)
        for name, made in self.makes.items():
            table.add_column(name, self._column(name), made | {"skipped": counts})
        (self.folder / "whole").touch()
        staging.replace(self.out.resolve())
        return PairTable.open(self.out), made | {"skipped": counts}

    def _column(self, name: str) -> Iterator[pa.ChunkedArray]:
        return (pq.read_table(self._file(i), columns=[name]).column(0) for i in range(self._chunks))

    def _note_skipped(self, log: Path, table: PairTable) -> dict[str, int]:
        """Write a line for every skipped row; gives how many there are for each reason."""
        counts: Counter[str] = Counter()
        keys = table.strings("key")
        with log.open("w", encoding="utf-8") as lines:
            for i in range(self._chunks):
                reasons = pq.read_table(self._file(i), columns=[SKIPPED]).column(0).to_pylist()
                for row, reason in zip(self._rows(i).tolist(), reasons, strict=True):
                    if reason:
                        counts[reason] += 1
                        lines.write(json.dumps({"row": row, "key": keys[row], "reason": reason}) + "\n")
        return dict(sorted(counts.items()))


def _check(name: str, table: PairTable, overwrite: bool) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"column name {name!r}: use a letter, then letters, digits, '_', '-' or '.'")
    if name in SCHEMA.names:
        raise UserError(f"column {name!r} belongs to the index and cannot be replaced; choose another name")
    if name in table.column_names and not overwrite:
        raise UserError(f"{table.path} has a column {name!r} already; choose another --name, or --overwrite it")


def _images(table: PairTable) -> str:
    """What the images are, wherever the table lies: a digest of every row's own."""
    return hashlib.sha256(table.strings("sha").blob.tobytes()).hexdigest()[:16]


def _different(begun: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In words, where two identities differ; "" if they do not."""
    flat_begun, flat_wanted = _flat(begun), _flat(wanted)
    names = [name for name in {**flat_begun, **flat_wanted} if flat_begun.get(name) != flat_wanted.get(name)]
    return ", ".join(f"{name} {flat_begun.get(name)!r} (now {flat_wanted.get(name)!r})" for name in names)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        path = f"{prefix}.{name}" if prefix else name
        flat |= _flat(entry, path) if isinstance(entry, dict) and entry else {path: entry}
    return {name.removeprefix("columns."): entry for name, entry in flat.items()}


def _same_on_all_ranks(numbers: list[int]) -> list[int]:
    """Rank 0's list, on every rank: another may have begun to write when the last one looks."""
    if world_size() == 1:
        return numbers
    agreed: list[Any] = [numbers]
    dist.broadcast_object_list(agreed)
    return list(agreed[0])
