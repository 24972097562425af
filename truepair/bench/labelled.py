"""How well a run's p_noise agrees with pairs that somebody has judged, where no truth is known."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from truepair.config import from_toml
from truepair.evaluate.labelled import labels_of
from truepair.noise import detection
from truepair.pairs.table import PairTable


def against_labels(run: Path, path: Path) -> dict[str, float]:
    """Figures of the run's last p_noise against the labels in a file, under the names of those against a truth.

    Pairs that the run did not use, or of which the judge was unsure, do not count: `labelled` says how many do. {}
    where the run kept no p_noise. Raises UserError for labels of another table, or a table that is gone.
    """
    kept = sorted((run / "columns").glob("epoch-*.parquet"))
    if not kept:
        return {}
    labels = labels_of(PairTable.open(from_toml(run / "run.toml").data), path)
    columns = pq.read_table(kept[-1], columns=["row", "p_noise"])
    rows, p_noise = (columns.column(name).to_numpy() for name in ("row", "p_noise"))
    known = np.isfinite(p_noise)
    _, here, judged = np.intersect1d(rows[known], labels.rows, assume_unique=True, return_indices=True)
    found = detection(p_noise[known][here].astype(np.float64), labels.noisy[judged])
    figures = {"auroc": found.auroc, "average_precision": found.average_precision, "ece": found.ece}
    return {name: value for name, value in figures.items() if np.isfinite(value)} | {"labelled": float(len(here))}
