"""Where no truth is known, a run's p_noise is measured on the pairs that somebody judged, and on no others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from truepair.bench import bench
from truepair.bench.labelled import against_labels, judge, judged_anew
from truepair.bench.reading import SHIPPED, from_toml
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
    found = against_labels(run, tmp_path / "scenes" / "train", labels)
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
        against_labels(run, tmp_path / "scenes" / "train", labels)
    for file in (run / "columns").iterdir():
        file.unlink()
    assert against_labels(run, tmp_path / "scenes" / "train", labels) == {}


def test_a_cell_keeps_its_figures_and_is_judged_anew_by_other_labels_alone(run: Path, tmp_path: Path) -> None:
    labels, table = tmp_path / "labels.csv", tmp_path / "scenes" / "train"
    labels.write_text("row,label\n5,keep\n20,mismatch\n")
    result: dict[str, Any] = {"cell": "x", "detection": {"mean_p_noise": 0.5}}
    judge(result, run, table, labels)
    assert result["detection"]["labelled"] == 2 and result["detection"]["auroc"] == 1
    before = json.loads(json.dumps(result))
    assert not judged_anew(result, tmp_path / "gone", lambda: tmp_path / "gone", labels) and result == before

    labels.write_text("row,label\n5,keep\n20,keep\n")
    with pytest.raises(UserError, match=r"cell x was judged by other labels than .*bring it back"):
        judged_anew(result, tmp_path / "gone", lambda: table, labels)
    assert judged_anew(result, run, lambda: table, labels) and result["labels"] != before["labels"]
    assert result["detection"].keys() == {"mean_p_noise", "labelled", "ece"}, "no AUROC of labels that were replaced"


def test_a_bench_stores_what_the_labels_say_and_needs_no_corpus_afterwards(
    pretended: Callable[..., Any], machine: Any, grid: Any, tmp_path: Path
) -> None:
    grid.rates, grid.labels = [0.0], str(tmp_path / "labels.csv")
    Path(grid.labels).write_text("row,label\n5,keep\n20,mismatch\n")

    def keep_columns(child: Any) -> None:
        columns = child.out.parent / child.cell / "columns" / "epoch-0002.parquet"
        write_parquet(columns, {"row": np.arange(60), "p_noise": np.arange(60) / 60})

    machine.on_poll = keep_columns
    _, results = pretended(seeds=[0])
    assert [cell["detection"]["labelled"] for cell in results["cells"]] == [2, 2]
    assert {cell["labels"] for cell in results["cells"]} == {results["grid"]["labels"]["digest"]}
    for name in ("clip-plain-0", "gate-soft-plain-0"):
        shutil.rmtree(tmp_path / "work" / "cells" / name)
    for file in (tmp_path / "work" / "cells").glob("*.json"):
        found = json.loads(file.read_text())
        found["settings"]["corpus"] = "gone/train"
        file.write_text(json.dumps(found))
    grid.corpus = "gone"
    again = bench.report(grid, tmp_path / "work")
    assert [cell["detection"] for cell in again["cells"]] == [cell["detection"] for cell in results["cells"]]
    assert "against 2 pairs that somebody judged (labels.csv)" in (tmp_path / "work" / "bench.html").read_text()


def test_labels_of_another_table_are_refused_before_anything_runs(
    pretended: Callable[..., Any], machine: Any, grid: Any, tmp_path: Path
) -> None:
    grid.rates, grid.labels = [0.0], str(tmp_path / "labels.csv")
    Path(grid.labels).write_text("row,key,label\n5,not its key,keep\n")
    with pytest.raises(UserError, match="has the key"):
        pretended()
    assert not machine.started


def test_the_shipped_labels_are_read_and_a_grid_names_a_file_that_is_there(tmp_path: Path) -> None:
    grid = from_toml(SHIPPED / "natural.toml")
    labels = read_labels(Path(grid.labels), 4601)
    assert (len(labels.rows), int(labels.noisy.sum()), len(labels.unsure)) == (191, 77, 9)
    (tmp_path / "grid.toml").write_text((SHIPPED / "natural.toml").read_text())
    with pytest.raises(UserError, match=r"labels = 'openclipart-labels\.csv': there is no such file"):
        from_toml(tmp_path / "grid.toml")
