"""How well a run's p_noise agrees with pairs that somebody has judged, where no truth is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from truepair.bench.digests import of_file
from truepair.errors import UserError
from truepair.evaluate.labelled import labels_of
from truepair.noise import detection
from truepair.pairs.table import PairTable

JUDGED = ("auroc", "average_precision", "ece", "labelled")


def judge(result: dict[str, Any], run: Path, table: Path, labels: Path) -> None:
    """Put a cell's figures against the labels in a file into its result, with the file's digest, under `labels`."""
    other = {name: value for name, value in result["detection"].items() if name not in JUDGED}
    result["detection"] = other | against_labels(run, table, labels)
    result["labels"] = of_file(labels)


def judged_anew(result: dict[str, Any], run: Path, table: Callable[[], Path], labels: Path) -> bool:
    """Whether a finished cell had other labels than those in the file, and was judged by these now.

    table: says where it is, if it is needed. Raises UserError if it would have to be, and its run or the table is gone.
    """
    if result.get("labels") == of_file(labels):
        return False
    if not run.is_dir():
        raise UserError(
            f"cell {result['cell']} was judged by other labels than {labels}, and {run} is not there to judge it anew: "
            "bring it back, or the labels of then"
        )
    judge(result, run, table(), labels)
    return True


def against_labels(run: Path, table: Path, path: Path) -> dict[str, float]:
    """Figures of the run's last p_noise against the labels in a file, under the names of those against a truth.

    Pairs that the run did not use, or of which the judge was unsure, do not count: `labelled` says how many do. {}
    where the run kept no p_noise. Raises UserError for labels of another table than `table`, or one that is gone.
    """
    kept = sorted((run / "columns").glob("epoch-*.parquet"))
    if not kept:
        return {}
    labels = labels_of(PairTable.open(table), path)
    columns = pq.read_table(kept[-1], columns=["row", "p_noise"])
    rows, p_noise = (columns.column(name).to_numpy() for name in ("row", "p_noise"))
    known = np.isfinite(p_noise)
    _, here, judged = np.intersect1d(rows[known], labels.rows, assume_unique=True, return_indices=True)
    found = detection(p_noise[known][here].astype(np.float64), labels.noisy[judged])
    figures = {"auroc": found.auroc, "average_precision": found.average_precision, "ece": found.ece}
    return {name: value for name, value in figures.items() if np.isfinite(value)} | {"labelled": float(len(here))}
