"""Reading a run's directory loses no line silently, and gives runs names that differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PairTable
from truepair.report.record import labels, read_run


def test_line_cut_short_is_left_out_and_noted(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 41, "ep')
    record = read_run(run)
    assert len(record.steps["loss"]) == 40 and len(record.evals) == 1
    assert record.notes == ["Line 43 of metrics.jsonl is left out: the run is being written, or was killed."]


def test_foreign_lines_in_the_middle_are_noted_by_number(make_run: Callable[..., Path]) -> None:
    run = make_run()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1:3] = ["[1, 2]", '{"kind": "noise", "epoch": 4}']
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = read_run(run)
    assert len(record.steps["loss"]) == 38
    assert [note.split(" of ")[0] for note in record.notes] == ["Line 2", "Line 3"]


def test_null_figures_are_nan_and_method_figures_are_told_apart(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 41, "epoch": 4.1, "loss": null, "weight": 0.5}\n')
    record = read_run(run)
    assert np.isnan(record.steps["loss"][-1]) and np.isnan(record.steps["weight"][:-1]).all()
    assert record.method_logs == ["weight"]


def test_pairs_never_seen_are_counted_and_left_out(make_run: Callable[..., Path], table: PairTable) -> None:
    run = make_run()
    loss = np.where(np.arange(60) < 7, np.nan, 1.0)
    write_parquet(run / "columns" / "epoch-0004.parquet", {"row": np.arange(60), "loss": loss, "p_noise": loss * 0})
    losses = read_run(run).losses
    assert losses is not None and losses.unseen == 7
    assert losses.rows.tolist() == list(range(7, 60))
    assert losses.truth is not None and losses.truth.tolist() == table.numbers("is_noise")[7:].tolist()


def test_runs_are_named_by_the_first_thing_that_tells_them_apart(make_run: Callable[..., Path]) -> None:
    a, b, gate = (read_run(run) for run in (make_run("a"), make_run("b"), make_run("c", "gate")))
    assert labels([a, gate]) == ["clip", "gate"]
    assert labels([a, b, gate]) == ["a", "b", "c"]
    assert labels([a, a]) == ["clip 1", "clip 2"]
