"""Reads what an audit wrote: audit.json at once, the columns and rows of audit.parquet as they are asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.noise import Mixture
from truepair.noise.tables import TRUTH

Scores = NDArray[np.float32]

MISMATCHED_PAIR = "mismatched_pair"  # the issue whose pairs are left out by the threshold, not by its flag
RECALIBRATED = "p_noise_recalibrated"
SIGNATURE = b"truepair.audit"  # in the schema of audit.parquet: the id of the audit.json it was written with


@dataclass(frozen=True)
class Issue:
    """A kind of trouble that pairs may have.

    threshold: of the score, which is in [0, 1] and higher for worse. action: what is suggested for flagged pairs.
    judged, flagged: numbers of pairs. skipped: why it was not looked for, "" if it was.
    column, flag_column, group_column: in audit.parquet; "" for those it does not have.
    """

    name: str
    title: str
    explanation: str
    score_says: str
    threshold: float
    action: str
    judged: int
    flagged: int
    column: str
    flag_column: str
    group_column: str
    skipped: str


@dataclass(frozen=True)
class Text:
    """What audit.parquet says of a row in words. All of it is hostile until the page escapes it."""

    key: str
    captions: list[str]
    problem: str
    action: str


@dataclass(frozen=True)
class AuditRecord:
    """An audit of n pairs. about: audit.json."""

    folder: Path
    about: dict[str, Any]
    issues: list[Issue]
    n: int
    columns: frozenset[str]

    @cached_property
    def p_noise(self) -> Scores:
        """(n,) probability of being mismatched, recalibrated if labels allowed it; NaN where it is not known."""
        return np.clip(self._scores(RECALIBRATED if self.recalibrated else "p_noise"), 0, 1)

    @property
    def recalibrated(self) -> bool:
        return RECALIBRATED in self.columns

    @cached_property
    def loss(self) -> Scores:
        """(n,) the loss that the mixture was fitted to; NaN where it is not known."""
        return -self._scores("neg_clip_loss")

    @cached_property
    def truth(self) -> NDArray[np.bool_] | None:
        """(n,) really mismatched; None if the table does not say."""
        return self._flags(TRUTH) if TRUTH in self.columns else None

    @property
    def mixture(self) -> Mixture | None:
        return Mixture.from_dict(self.about["mixture"]) if self.about.get("mixture") else None

    @property
    def looked_for(self) -> list[Issue]:
        return [issue for issue in self.issues if not issue.skipped]

    def scores_of(self, issue: Issue) -> Scores:
        """(n,) in [0, 1], NaN for pairs that were not judged."""
        return self._scores(issue.column)

    def flags_of(self, issue: Issue) -> NDArray[np.bool_]:
        return self._flags(issue.flag_column)

    def groups_of(self, issue: Issue) -> NDArray[np.int64]:
        """(n,) the number of each pair's group, -1 for those in none."""
        column = self._column(issue.group_column)
        groups: NDArray[np.int64] = column.fill_null(-1).to_numpy().astype(np.int64, copy=False)
        return groups

    def numbers_at(self, rows: NDArray[np.int64]) -> dict[str, Scores]:
        """The scores of some rows by name, of those that audit.parquet has: cosine, neg_clip_loss, p_noise, itm."""
        names = [name for name in ("cosine", "neg_clip_loss", "p_noise", "itm") if name in self.columns]
        return {name: self._scores(name)[rows] for name in names}

    def texts_at(self, rows: NDArray[np.int64]) -> dict[int, Text]:
        """Key, captions, problem and action of some ascending rows; only the row groups that hold one are read."""
        names = [name for name in ("key", "caption", "problem", "action") if name in self.columns]
        found: dict[int, Text] = {}
        with pq.ParquetFile(self.folder / "audit.parquet", memory_map=True) as file:
            start = 0
            for number in range(file.num_row_groups):
                end = start + file.metadata.row_group(number).num_rows
                here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
                if len(here):
                    group = file.read_row_group(number, columns=names).take(pa.array(here - start))
                    found |= dict(zip(here.tolist(), map(_text, group.to_pylist()), strict=True))
                start = end
        return found

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self.columns:
            raise UserError(f"{self.folder / 'audit.parquet'} has no column {name!r}, which its audit.json names")
        return pq.read_table(self.folder / "audit.parquet", columns=[name], memory_map=True).column(0)

    def _scores(self, name: str) -> Scores:
        values: Scores = self._column(name).cast(pa.float32()).to_numpy().astype(np.float32, copy=False)
        return values

    def _flags(self, name: str) -> NDArray[np.bool_]:
        column = self._column(name)
        values = column.fill_null(False) if pa.types.is_boolean(column.type) else column.fill_null(0)
        flags: NDArray[np.bool_] = values.to_numpy().astype(np.bool_, copy=False)
        return flags


def read_audit(folder: Path) -> AuditRecord:
    """The audit in a directory; raises UserError if there is none, or its two files do not belong together."""
    again = "run: truepair audit TABLE --model MODEL --out"
    try:
        about = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
        issues = [_issue(entry) for entry in about["issues"]]
        n = int(about["n"])
        schema, rows = _schema(folder / "audit.parquet")
        signature = (schema.metadata or {}).get(SIGNATURE, b"").decode()
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no finished audit (no {Path(error.filename).name}); {again} {folder}"
        ) from None
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"the audit in {folder} cannot be read ({error!r}); {again} {folder} --again") from None
    if rows != n:
        raise UserError(f"{folder}: audit.parquet has {rows} rows, audit.json speaks of {n}; {again} {folder} --again")
    if signature != about.get("id", ""):
        raise UserError(f"{folder}: audit.parquet and audit.json are of two audits; {again} {folder} --again")
    return AuditRecord(folder, about, issues, n, frozenset(schema.names))


def _schema(path: Path) -> tuple[pa.Schema, int]:
    metadata = pq.read_metadata(path)
    return metadata.schema.to_arrow_schema(), metadata.num_rows


def _issue(entry: dict[str, Any]) -> Issue:
    words = ("explanation", "score_says", "action", "column", "flag_column", "group_column", "skipped")
    return Issue(
        name=str(entry["name"]),
        title=str(entry["title"]),
        threshold=float(entry.get("threshold") or 0),
        judged=int(entry.get("judged") or 0),
        flagged=int(entry.get("flagged") or 0),
        **{word: str(entry.get(word) or "") for word in words},
    )


def _text(row: dict[str, Any]) -> Text:
    captions = [caption for caption in row.get("caption") or [] if caption is not None]
    return Text(row.get("key") or "", captions, row.get("problem") or "", row.get("action") or "")
