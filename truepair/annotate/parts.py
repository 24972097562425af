"""A long pass over a table's rows: shared by ranks, killed at any moment, gone on with, ending in new columns."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from truepair.annotate.identity import difference, images
from truepair.annotate.sharing import locked, said_by_rank_0
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


class Stopped(Exception):
    """A pass was told to stop. The parts it has made are kept, and it is gone on with like one that was killed."""


class Parts:
    """What a pass has made so far, in part files of `chunk` rows each, in the folder OUT.parts beside the table OUT.

    Use, the same on every rank (`losses.distributed`):

        parts = Parts.open(table, out, {"NAME": made})
        for rows in parts.todo():
            parts.write(rows, {"NAME": values}, [(row, "unreadable image"), ...])
        finished = parts.finish("skipped-VERB.jsonl")

    A row's values must be a function of the row, the table and `made` alone, not of its chunk: then a pass that was
    killed and gone on with, by any number of ranks, ends in the very bytes of an undisturbed one. So `made` names all
    that they depend on, by digest where it has no other name (`identity`).

    Attributes: `total`, `done` rows (of all ranks, when opened), `share` rows that this rank has still to do.
    """

    def __init__(self, table: PairTable, out: Path, makes: dict[str, dict[str, Any]], chunk: int) -> None:
        self.table, self.out, self.makes, self.chunk = table, out, makes, chunk
        self.target = out.resolve()
        if not self.target.name:
            raise UserError(f"{out} cannot be a table; choose another --out")
        self.folder = self.target.with_name(f"{self.target.name}.parts")
        self._begun, self._whole = self.folder / "pass.json", self.folder / "whole"  # both hold the identity
        self.total = len(table)
        self._chunks = -(-self.total // chunk)
        self._todo: list[int] = []
        self._identity: dict[str, Any] = {}

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
        Raises UserError, on all ranks, for names that cannot be, for an `out` that is taken, for parts of another pass,
        and where another process is at work in the folder: from here to the end of `finish` it belongs to this one.
        """
        for name in makes:
            _check(name, table, overwrite)
        parts = cls(table, out, makes, chunk or CHUNK)
        identity = {"columns": makes, "rows": parts.total, "images": images(table), "chunk": parts.chunk}
        parts._identity = json.loads(json.dumps(identity))
        agreed, parts._todo = said_by_rank_0(lambda: (parts._identity, parts._begin()))
        if different := difference(agreed, parts._identity):
            raise UserError(f"rank 0 has other inputs than rank {rank()}: {different}")
        return parts

    def _begin(self) -> list[int]:
        """Take the folder, see that what is there is of this pass; gives the numbers of the parts to make."""
        self._refuse_taken()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write beside {self.out}: {error.strerror} ({self.folder})") from None
        self._lock = locked(self.folder)
        self._refuse_taken()  # by a process that has ended in between
        named = self._named()
        begun = self._read_identity() if named or any(self.folder.glob("part-*")) else self._identity
        if different := difference(begun, self._identity):
            raise UserError(f"{self.folder} was begun with {different}; go on with that, or remove the folder")
        if not named:
            self._write_identity(self._begun)
        return [i for i in range(self._chunks) if not named and not self._file(i).exists()]

    def _refuse_taken(self) -> None:
        if self.target.exists() and not self.target.is_dir():
            raise UserError(f"{self.out} is a file, a table needs a folder; choose another --out")
        if not self._named() and self.target.is_dir() and any(self.target.iterdir()):
            raise UserError(f"{self.out} exists and is not empty; choose another --out or remove it")

    def _read_identity(self) -> dict[str, Any]:
        """What the pass in the folder was begun with."""
        file = self._begun if self._begun.exists() else self._whole
        try:
            begun: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            columns: dict[str, Any] = begun["columns"]
            columns.items()
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{file}, which says what the parts beside it are, is damaged or missing; remove {self.folder}"
            ) from None
        return begun

    def _write_identity(self, file: Path) -> None:
        partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
        with partial.open("w", encoding="utf-8") as opened:
            opened.write(json.dumps(self._identity))
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:07d}.parquet"

    def _rows(self, number: int) -> Rows:
        return np.arange(number * self.chunk, min((number + 1) * self.chunk, self.total))

    def _named(self) -> bool:
        """Whether the table is whole and has its name already: a kill came while the parts were removed."""
        return self._whole.exists() and not (self.folder / "table").exists() and (self.target / "table.json").is_file()

    @property
    def done(self) -> int:
        """Rows that were there when this process began."""
        return self.total - sum(len(self._rows(number)) for number in self._todo)

    @property
    def share(self) -> int:
        """Rows this rank has to do."""
        return sum(len(self._rows(number)) for number in self._todo[rank() :: world_size()])

    def todo(self, stop: Callable[[], bool] | None = None) -> Iterator[Rows]:
        """The chunks this rank has still to do, as row numbers (m,), ascending.

        `stop` is asked before each, by every rank equally often, so that it can agree over ranks. Raises Stopped where
        it says so; the folder then is free for whoever goes on.
        """
        mine = self._todo[rank() :: world_size()]
        for turn in range(-(-len(self._todo) // world_size())):
            if stop is not None and stop():
                if rank() == 0:
                    self._lock.close()
                raise Stopped
            if turn < len(mine):
                yield self._rows(mine[turn])

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
        for file in self.folder.iterdir():
            if file.name.startswith(("part-", ".")):
                file.unlink()
        self._whole.unlink()  # what a kill leaves from here on is an `out` like any other
        self._lock.close()
        shutil.rmtree(self.folder)
        return Finished(table, made["skipped"])

    def _assemble(self, log: str) -> tuple[PairTable, dict[str, Any]]:
        self._whole.unlink(missing_ok=True)  # of a kill before the table had its name
        staging = self.folder / "table"
        for rest in [staging, *self.folder.glob(".table.partial-*")]:
            shutil.rmtree(rest, ignore_errors=True)  # of a kill at this place
        table = self.table.derive(staging)
        counts = self._note_skipped(staging / log, table)
        for name, made in self.makes.items():
            table.add_column(name, self._column(name), made | {"skipped": counts})
        self._write_identity(self._whole)
        staging.replace(self.target)
        return PairTable.open(self.out), made | {"skipped": counts}

    def _column(self, name: str) -> Iterator[pa.ChunkedArray]:
        return (self._read(i, name) for i in range(self._chunks))

    def _read(self, number: int, name: str) -> pa.ChunkedArray:
        file = self._file(number)
        try:
            return pq.read_table(file, columns=[name]).column(0)
        except (OSError, pa.ArrowException) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{file} is damaged ({reason}); remove it and start again") from None

    def _note_skipped(self, log: Path, table: PairTable) -> dict[str, int]:
        """Write a line for every skipped row; gives how many there are for each reason."""
        counts: Counter[str] = Counter()
        keys = table.strings("key")
        with log.open("w", encoding="utf-8") as lines:
            for i in range(self._chunks):
                reasons = self._read(i, SKIPPED).to_pylist()
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
