"""Where no truth is known, a run's p_noise is measured on the pairs that somebody judged, and on no others."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from truepair.bench.grid import SHIPPED, from_toml
from truepair.bench.labelled import against_labels
from truepair.config import RunConfig, to_toml
from truepair.errors import UserError
from truepair.noise.labels import read_labels
from truepair.pairs.columns import write_parquet
from truepair.pairs.corpora.tables import make_tables


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run over 60 scenes that left out row 3; its last epoch doubts higher rows more, with an exception."""
    make_tables("scenes", tmp_path / "scenes", n=60, seed=0, size=32)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(to_toml(RunConfig(data=str(tmp_path / "scenes" / "train"), out=str(folder))))
    rows = np.delete(np.arange(60), 3)
    p_noise = rows / 60
    p_noise[rows == 50] = 0.01
    write_parquet(folder / "columns" / "epoch-0002.parquet", {"row": rows, "p_noise": 1 - p_noise})
    write_parquet(folder / "columns" / "epoch-0010.parquet", {"row": rows, "p_noise": p_noise})
    return folder


def test_figures_are_scikit_learns_on_the_judged_rows_that_the_run_used(run: Path, tmp_path: Path) -> None:
    judged = {
        3: "mismatch",
        5: "keep",
        10: "keep",
        20: "mismatch",
        30: "keep",
        40: "unsure",
        50: "mismatch",
        55: "mismatch",
    }
    labels = tmp_path / "labels.csv"
    labels.write_text("row,label\n" + "".join(f"{row},{label}\n" for row, label in judged.items()))
    found = against_labels(run, labels)
    truth, p = [0, 0, 1, 0, 1, 1], [5 / 60, 10 / 60, 20 / 60, 30 / 60, 0.01, 55 / 60]
    assert found["labelled"] == 6
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, p))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, p))


def test_a_run_without_p_noise_has_no_figures_and_labels_of_another_table_are_refused(
    run: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("row,key,label\n1,not its key,keep\n")
    with pytest.raises(UserError, match="has the key"):
        against_labels(run, labels)
    for file in (run / "columns").iterdir():
        file.unlink()
    assert against_labels(run, labels) == {}


def test_the_shipped_labels_are_read_and_a_grid_names_a_file_that_is_there(tmp_path: Path) -> None:
    grid = from_toml(SHIPPED / "natural.toml")
    labels = read_labels(Path(grid.labels), 4601)
    assert (len(labels.rows), int(labels.noisy.sum()), len(labels.unsure)) == (191, 77, 9)
    (tmp_path / "grid.toml").write_text((SHIPPED / "natural.toml").read_text())
    with pytest.raises(UserError, match=r"labels = 'openclipart-labels\.csv': there is no such file"):
        from_toml(tmp_path / "grid.toml")
