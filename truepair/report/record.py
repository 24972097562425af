"""Reads what a run has left in its directory: configuration, figures by step and epoch, what it knows of each pair."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from truepair.config import RunConfig, from_toml
from truepair.errors import UserError
from truepair.noise import Mixture
from truepair.noise.tables import TRUTH
from truepair.pairs.table import PairTable

Vector = NDArray[np.float64]

OPINION = ("confidence", "noisy", "times_noisy")  # columns that a method with an opinion of its own adds
COMMON = frozenset(  # figures that every run writes at each step; what a line holds beyond them is the method's own
    ["kind", "step", "epoch", "lr", "loss", "scale", "grad_norm", "samples_per_s", "data_wait", "repeated_captions"]
)


@dataclass(frozen=True)
class NoiseFit:
    """The noise model after an epoch. auroc, ece: against the truth; NaN where it is not known."""

    epoch: int
    mixture: Mixture
    mean_p_noise: float
    auroc: float
    ece: float


@dataclass(frozen=True)
class Split:
    """What the method itself thought of the pairs after an epoch; figures are NaN where undefined or not known.

    noisy_share: of the pairs, those it last called noisy. auroc: of 1-c, c its confidence in a pair. precision: share
    of really mismatched pairs among those called noisy; recall: share of those called noisy among the mismatched.
    """

    epoch: int
    noisy_share: float
    auroc: float
    precision: float
    recall: float


@dataclass(frozen=True)
class PairOpinions:
    """What the method itself says of m pairs.

    confidence: (m,) float64 in [0, 1], NaN where it said nothing. noisy: (m,) bool, its last call. times: (m,) int64,
    how often it called a pair noisy in the run.
    """

    split: Split
    confidence: Vector
    noisy: NDArray[np.bool_]
    times: NDArray[np.int64]


@dataclass(frozen=True)
class PairLosses:
    """The m pairs of which something was known after an epoch, in row order.

    fit: the epoch's; None before the first, when p_noise is 0 and a loss may be NaN (the method alone knew the pair).
    rows: (m,) int64. loss: (m,) float64, finite. p_noise: (m,) float64. truth: (m,) bool, True = mismatched; None where
    it is not known. unseen: pairs in use that no step had reached. opinion: None where the method has none.
    """

    fit: NoiseFit | None
    rows: NDArray[np.int64]
    loss: Vector
    p_noise: Vector
    truth: NDArray[np.bool_] | None
    unseen: int
    opinion: PairOpinions | None = None

    @property
    def sound(self) -> bool:
        """Whether p_noise says anything."""
        return self.fit is not None and not self.fit.mixture.degenerate


@dataclass(frozen=True)
class RunRecord:
    """One run as far as it has come.

    steps: figure -> (n,) float64 over the n training lines, NaN where a line lacks it; always has epoch and loss.
    notes: what could not be read, a sentence each.
    """

    folder: Path
    config: RunConfig
    steps: dict[str, Vector]
    fits: list[NoiseFit]
    evals: list[dict[str, float]]
    losses: PairLosses | None
    table: PairTable | None
    notes: list[str] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)

    @property
    def method_logs(self) -> list[str]:
        """Names of the figures that only this run's method writes."""
        return sorted(set(self.steps) - COMMON)

    @property
    def known_rate(self) -> float | None:
        """Share of really mismatched pairs among those with losses; None where the truth is not known."""
        truth = self.losses.truth if self.losses else None
        return float(truth.mean()) if truth is not None and len(truth) else None

    @property
    def sound_fits(self) -> list[NoiseFit]:
        """The fits that found two groups and whose pairs were kept."""
        return [
            fit for fit in self.fits if not fit.mixture.degenerate and _columns_of(self.folder, fit.epoch).is_file()
        ]

    def after(self, fit: NoiseFit) -> PairLosses | None:
        """The pairs as they were after one of the run's fits; None, with a note, if they cannot be read."""
        if self.losses is not None and self.losses.fit == fit:
            return self.losses
        return _losses_after(fit.epoch, self.folder, self.fits, self.splits, self.table, self.notes)

    def latest(self, figure: str) -> float:
        """A figure of the last evaluation; NaN if there is none."""
        return self.evals[-1].get(figure, math.nan) if self.evals else math.nan


def read_run(folder: Path) -> RunRecord:
    """Read a run's directory, finished or not. Raises UserError if it holds no run; the rest is said in `notes`."""
    if not (folder / "run.toml").is_file():
        raise UserError(f"{folder} is not a run (no run.toml); give the directory that `truepair train --out` wrote")
    config = from_toml(folder / "run.toml")
    notes: list[str] = []
    train, fits, splits, evals = _metrics(folder / "metrics.jsonl", notes)
    table = _table(config, notes)
    losses = _losses(folder, fits, splits, table, notes)
    return RunRecord(folder, config, _columns(train), fits, evals, losses, table, notes, splits)


def _metrics(
    path: Path, notes: list[str]
) -> tuple[list[dict[str, Any]], list[NoiseFit], list[Split], list[dict[str, float]]]:
    """Training lines, noise fits, the method's splits and evaluations of a metrics.jsonl."""
    train: list[dict[str, Any]] = []
    fits: list[NoiseFit] = []
    splits: list[Split] = []
    evals: list[dict[str, float]] = []
    if not path.is_file():
        notes.append("There is no metrics.jsonl yet: training has not begun.")
        return train, fits, splits, evals
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            match entry["kind"]:
                case "train":
                    train.append(entry)
                case "noise":
                    split = [_split(entry)] if "noisy_share" in entry else []
                    if "mixture" in entry or not split:  # a method's split comes before the first fit too
                        fits.append(_fit(entry))
                    splits += split
                case "eval":
                    evals.append({name: float(v) for name, v in entry.items() if isinstance(v, int | float)})
        except (ValueError, KeyError, TypeError):
            torn = "the run is being written, or was killed" if number == len(lines) else "it is not a line of figures"
            notes.append(f"Line {number} of metrics.jsonl is left out: {torn}.")
    return train, fits, splits, evals


def _fit(entry: dict[str, Any]) -> NoiseFit:
    mixture = Mixture.from_dict(entry["mixture"])
    return NoiseFit(
        int(entry["epoch"]),
        mixture,
        _number(entry.get("mean_p_noise")),
        _number(entry.get("auroc")),
        _number(entry.get("ece")),
    )


def _split(entry: dict[str, Any]) -> Split:
    names = ("noisy_share", "confidence_auroc", "noisy_precision", "noisy_recall")
    return Split(int(entry["epoch"]), *(_number(entry.get(name)) for name in names))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _columns(lines: Sequence[dict[str, Any]]) -> dict[str, Vector]:
    names = {"epoch", "loss"}.union(*lines) - {"kind"}
    return {name: np.array([_number(line.get(name)) for line in lines], np.float64) for name in sorted(names)}


def _table(config: RunConfig, notes: list[str]) -> PairTable | None:
    try:
        return PairTable.open(config.data)
    except UserError as error:
        notes.append(f"Pictures, captions and truth are not shown: {error}.")
        return None


def _losses(
    folder: Path, fits: list[NoiseFit], splits: list[Split], table: PairTable | None, notes: list[str]
) -> PairLosses | None:
    """The columns of the newest fit or split that has some; None if there is none."""
    epochs = [fit.epoch for fit in fits] + [split.epoch for split in splits]
    kept = [epoch for epoch in epochs if _columns_of(folder, epoch).is_file()]
    return _losses_after(max(kept), folder, fits, splits, table, notes) if kept else None


def _losses_after(
    epoch: int, folder: Path, fits: list[NoiseFit], splits: list[Split], table: PairTable | None, notes: list[str]
) -> PairLosses | None:
    path = _columns_of(folder, epoch)
    fit = next((fit for fit in fits if fit.epoch == epoch), None)
    split = next((split for split in splits if split.epoch == epoch), None)
    try:
        names = ["row", "loss", "p_noise", *(OPINION if split else ())]
        columns = pq.read_table(path, columns=names)
        rows, loss, p_noise, *said = (_typed(columns, name) for name in names)
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        notes.append(f"The losses of epoch {epoch} are not shown: {path} cannot be read ({error}).")
        return None
    seen = np.isfinite(loss)
    if fit is None and said:
        seen |= np.isfinite(said[0])
    truth = None
    if table is not None and len(rows) and rows.max() >= len(table):
        notes.append(f"Truth is not shown: the pair table {table.path} has fewer rows now than when the run was made.")
    elif table is not None and TRUTH in table.column_names:
        truth = table.numbers(TRUTH)[rows[seen]].astype(np.bool_)
    opinion = None
    if split:
        confidence, noisy, times = (column[seen] for column in said)
        opinion = PairOpinions(split, confidence.astype(np.float64), noisy.astype(np.bool_), times.astype(np.int64))
    loss, p_noise = loss[seen].astype(np.float64), p_noise[seen].astype(np.float64)
    return PairLosses(fit, rows[seen], loss, p_noise, truth, int((~seen).sum()), opinion)


def _columns_of(folder: Path, epoch: int) -> Path:
    return folder / "columns" / f"epoch-{epoch:04d}.parquet"


def _typed(columns: pa.Table, name: str) -> NDArray[Any]:
    """A column as the ledger writes it: bool, whole numbers or, NaN for null, float64. Raises TypeError for others."""
    column, types = columns.column(name), pa.types
    if name == "noisy":
        wanted, fits = "true or false", types.is_boolean(column.type)
    elif name in ("row", "times_noisy"):
        wanted, fits = "whole numbers from 0 on", types.is_integer(column.type)
    else:
        wanted, fits = "numbers", types.is_floating(column.type) or types.is_integer(column.type)
    values: NDArray[Any] = (column.cast(pa.float64()) if fits and wanted == "numbers" else column).to_numpy()
    if not fits or (wanted != "numbers" and (column.null_count or (values < 0).any())):
        raise TypeError(f"its column {name} holds other things ({column.type}) than {wanted}")
    return values


def labels(runs: Sequence[RunRecord]) -> list[str]:
    """A short name for each run, all different: its method, else its folder, else more of its path or a number."""
    for names in (
        [run.config.method for run in runs],
        [run.folder.resolve().name for run in runs],
        ["/".join(run.folder.resolve().parts[-2:]) for run in runs],
    ):
        if len(set(names)) == len(runs):
            return names
    return [f"{run.config.method} {number}" for number, run in enumerate(runs, 1)]
