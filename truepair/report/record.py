"""Reads what a run has left in its directory: configuration, figures step by step, noise fits, losses of the pairs."""

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
class PairLosses:
    """The m pairs that had a loss at a noise fit, in row order.

    rows: (m,) int64. loss: (m,) float64, finite. p_noise: (m,) float64. truth: (m,) bool, True = mismatched; None where
    it is not known. unseen: pairs in use that no step had reached.
    """

    fit: NoiseFit
    rows: NDArray[np.int64]
    loss: Vector
    p_noise: Vector
    truth: NDArray[np.bool_] | None
    unseen: int


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

    @property
    def method_logs(self) -> list[str]:
        """Names of the figures that only this run's method writes."""
        return sorted(set(self.steps) - COMMON)

    @property
    def known_rate(self) -> float | None:
        """Share of really mismatched pairs among those with losses; None where the truth is not known."""
        truth = self.losses.truth if self.losses else None
        return float(truth.mean()) if truth is not None and len(truth) else None

    def latest(self, figure: str) -> float:
        """A figure of the last evaluation; NaN if there is none."""
        return self.evals[-1].get(figure, math.nan) if self.evals else math.nan


def read_run(folder: Path) -> RunRecord:
    """Read a run's directory, finished or not. Raises UserError if it holds no run; the rest is said in `notes`."""
    if not (folder / "run.toml").is_file():
        raise UserError(f"{folder} is not a run (no run.toml); give the directory that `truepair train --out` wrote")
    config = from_toml(folder / "run.toml")
    notes: list[str] = []
    train, fits, evals = _metrics(folder / "metrics.jsonl", notes)
    table = _table(config, notes)
    losses = _losses(folder, fits, table, notes)
    return RunRecord(folder, config, _columns(train), fits, evals, losses, table, notes)


def _metrics(path: Path, notes: list[str]) -> tuple[list[dict[str, Any]], list[NoiseFit], list[dict[str, float]]]:
    """Training lines, noise fits and evaluations of a metrics.jsonl."""
    train: list[dict[str, Any]] = []
    fits: list[NoiseFit] = []
    evals: list[dict[str, float]] = []
    if not path.is_file():
        notes.append("There is no metrics.jsonl yet: training has not begun.")
        return train, fits, evals
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            match entry["kind"]:
                case "train":
                    train.append(entry)
                case "noise":
                    fits.append(_fit(entry))
                case "eval":
                    evals.append({name: float(v) for name, v in entry.items() if isinstance(v, int | float)})
        except (ValueError, KeyError, TypeError):
            torn = "the run is being written, or was killed" if number == len(lines) else "it is not a line of figures"
            notes.append(f"Line {number} of metrics.jsonl is left out: {torn}.")
    return train, fits, evals


def _fit(entry: dict[str, Any]) -> NoiseFit:
    mixture = Mixture.from_dict(entry["mixture"])
    return NoiseFit(
        int(entry["epoch"]),
        mixture,
        _number(entry.get("mean_p_noise")),
        _number(entry.get("auroc")),
        _number(entry.get("ece")),
    )


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


def _losses(folder: Path, fits: list[NoiseFit], table: PairTable | None, notes: list[str]) -> PairLosses | None:
    """The columns of the newest fit that has some; None if there is none."""
    kept = [(fit, folder / "columns" / f"epoch-{fit.epoch:04d}.parquet") for fit in fits]
    kept = [(fit, path) for fit, path in kept if path.is_file()]
    if not kept:
        return None
    fit, path = kept[-1]
    try:
        columns = pq.read_table(path, columns=["row", "loss", "p_noise"])
    except (OSError, pa.ArrowException) as error:
        notes.append(f"The losses of epoch {fit.epoch} are not shown: {path} cannot be read ({error}).")
        return None
    rows, loss, p_noise = (column.to_numpy() for column in columns.columns)
    seen = np.isfinite(loss)
    truth = None
    if table is not None and len(rows) and rows.max() >= len(table):
        notes.append(f"Truth is not shown: the pair table {table.path} has fewer rows now than when the run was made.")
    elif table is not None and TRUTH in table.column_names:
        truth = table.numbers(TRUTH)[rows[seen]].astype(np.bool_)
    return PairLosses(
        fit, rows[seen], loss[seen].astype(np.float64), p_noise[seen].astype(np.float64), truth, int((~seen).sum())
    )


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
