"""The command from a grid to its page: a cell is a run, runs once, and is not taken for another."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from truepair.bench import bench
from truepair.bench.cells import cells_of
from truepair.bench.grid import ORACLE, EvalSet
from truepair.bench.lock import locked
from truepair.bench.state import CellFiles, Progress
from truepair.cli import main
from truepair.errors import UserError

REAL = {
    "epochs = 2": 'epochs = 1\nprecision = "fp32"\ndevice = "cpu"',
    "[0, 1]": "[3]",
    '[[methods]]\nmethod = "clip"': '[[evaluate]]\nname = "own"\nzeroshot = "zeroshot"\n\n'
    '[[evaluate]]\nname = "again"\nretrieval = "test"\n\n[[methods]]\nmethod = "clip"',
}


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[Any, str]:
    """The JSON object that `truepair bench` prints, {} if there is none, and what it says."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *argv, "--json"])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err


def test_a_grid_becomes_runs_tables_and_a_page(
    write_grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, work = str(write_grid(REAL)), tmp_path / "work"
    one = [grid, "--out", str(work), "--methods", ORACLE]
    result, said = told(capsys, *one)
    assert (result["done"], result["open"], result["failed"]) == (1, 4, {}), said

    found = json.loads((work / "cells" / "oracle-filter-shuffle-40-3.json").read_text())
    assert 0 <= found["figures"]["own"]["top1"] <= found["figures"]["own"]["top5"] <= 1
    assert 0 <= found["figures"]["again"]["image_to_text_r1"] <= 1
    assert found["cost"]["peak_memory"] > 2**26 and found["cost"]["samples_per_s"] > 0
    run = work / "cells" / "oracle-filter-shuffle-40-3"
    assert (run / "report.html").is_file() and (run / "metrics.jsonl").is_file()
    kept = pq.read_table(work / "tables" / "shuffle-40-3-matched.parquet").num_rows
    assert found["settings"]["rows"] == kept and found["steps"] >= kept // 32
    assert {"evaluate.own.zeroshot.digest", "evaluate.again.retrieval.digest"} <= found["settings"].keys()
    assert (work / "noise" / "shuffle-40-3.parquet").is_file()
    assert "oracle filter" in (work / "bench.html").read_text() and "oracle filter" in (work / "table.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again, said = told(capsys, *one)
    assert again["done"] == 1 and "1 of 1 cells are done" in said
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}, "a cell that is done is not run again"

    listed, _ = told(capsys, grid, "--out", str(work), "--list")
    statuses = {one["cell"]: one["status"] for one in listed["cells"]}
    assert statuses.pop("oracle-filter-shuffle-40-3") == "done" and set(statuses.values()) == {"open"}
    assert listed["seconds_left"] > 0

    other = str(write_grid(REAL | {"batch_size = 32": "batch_size = 16"}, "other.toml"))
    for flags in (["--methods", ORACLE], ["--report-only"]):
        _, said = told(capsys, other, "--out", str(work), *flags, code=2)
        assert "batch_size = 32, where the grid now asks for 16" in said


def test_a_part_of_a_grid_is_told_as_a_part_and_the_rest_joins_it(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path
) -> None:
    outcome, results = pretended(seeds=[1])
    assert len(outcome.done) == 5 and len(results["open"]) == 5
    machine.started.clear()
    outcome, results = pretended()
    assert len(outcome.done) == 5 and not results["open"] and len(results["cells"]) == 10
    assert all(cell.endswith("-0") for cell in machine.cells)
    assert [one["file"] for one in results["noise"]] == ["noise/shuffle-40-0.parquet", "noise/shuffle-40-1.parquet"]
    commands = [shlex.join(child.command[1:]) for child in machine.started]
    assert all(f"-m truepair train --config {tmp_path / 'work' / 'cells'}" in command for command in commands)
    recipe = (tmp_path / "work" / "cells" / "gate-soft-shuffle-40-0.toml").read_text()
    assert 'method = "gate"' in recipe and "power = 0.5" in recipe and "seed = 0" in recipe and "workers = 0" in recipe


def test_failures_are_in_the_results_and_the_next_call_tries_them_again(
    pretended: Callable[..., Any], machine: Any
) -> None:
    machine.broken = {"clip-plain-1"}
    _, results = pretended()
    assert results["failed"] == {"clip-plain-1": "train: truepair: no such thing"} and len(results["cells"]) == 9
    machine.broken = set()
    machine.started.clear()
    _, results = pretended()
    assert machine.cells == ["clip-plain-1"] and not results["failed"] and len(results["cells"]) == 10


def test_the_command_ends_with_2_after_failures_and_130_after_a_signal(
    write_grid: Callable[..., Path],
    scenes: Path,
    tmp_path: Path,
    machine: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(bench.run_bench.__kwdefaults__, "start", machine)
    grid = str(write_grid({'corpus = "scenes"': f'corpus = "{scenes}"', "[0, 1]": "[0]"}))
    call = [grid, "--out", str(tmp_path / "work")]
    machine.on_poll = lambda child: os.kill(os.getpid(), signal.SIGTERM) if not child.told else None
    result, said = told(capsys, *call, code=130)
    assert result["interrupted"] and "the same command goes on" in said

    machine.on_poll, machine.broken = None, {"gate-soft-plain-0"}
    result, said = told(capsys, *call, code=2)
    assert result["failed"] == {"gate-soft-plain-0": "train: truepair: no such thing"} and result["done"] == 4
    assert said.splitlines()[-1].startswith("truepair: cell gate-soft-plain-0: train: truepair: no such thing (")
    assert "no such thing" in (tmp_path / "work" / "bench.html").read_text()

    machine.broken = set()
    result, said = told(capsys, *call, "--limit-minutes", "60")
    assert (result["done"], result["failed"], result["late"]) == (5, {}, False)


def test_two_benches_do_not_share_a_directory(pretended: Callable[..., Any], tmp_path: Path, grid: Any) -> None:
    (tmp_path / "work").mkdir()
    with locked(tmp_path / "work"), pytest.raises(UserError, match="another bench"):
        pretended()
    assert pretended(seeds=[0], rates=[0.0])[0].done
    with locked(tmp_path / "work"), pytest.raises(UserError, match="another bench"):
        bench.report(grid, tmp_path / "work")
    with pytest.raises(UserError, match="there is no bench in"):
        bench.report(grid, tmp_path / "nowhere")


def test_a_typo_in_a_held_out_set_is_found_before_anything_runs(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path, grid: Any
) -> None:
    grid.evaluate.append(EvalSet("second", retrieval="tset"))
    with pytest.raises(UserError, match="held-out set 'second', retrieval"):
        pretended()
    assert not machine.started


def test_a_held_out_set_may_change_after_training_as_long_as_nothing_was_measured_on_it(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path, grid: Any
) -> None:
    grid.evaluate.append(EvalSet("second", retrieval="train"))
    machine.on_poll = lambda child: child.told.append("kill") if "eval" in child.command[:4] else None
    outcome, _ = pretended(methods=["clip"], rates=[0.0], seeds=[0], jobs=1)
    assert list(outcome.failed) == ["clip-plain-0"]
    grid.evaluate[1].retrieval = "test"
    machine.on_poll, machine.started = None, []
    assert pretended(methods=["clip"], rates=[0.0], seeds=[0], jobs=1)[0].done == ["clip-plain-0"]
    assert [child.command[3] for child in machine.started] == ["eval"], "the training was kept"


def test_tables_are_made_when_their_turn_has_come_and_the_limit_counts_from_the_start(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "work" / "tables"
    seen: list[int] = []
    machine.on_poll = lambda child: seen.append(len(list(tables.glob("*/table.json"))))
    pretended(jobs=1)
    assert seen[0] == 0 and seen[-1] == 2 and seen == sorted(seen)

    ticks = iter(range(0, 10_000, 100))
    monkeypatch.setattr(bench.time, "monotonic", lambda: float(next(ticks)))
    machine.started.clear()
    (tmp_path / "work" / "cells" / "clip-plain-0.json").unlink()
    outcome, results = pretended(limit_minutes=1)
    assert outcome.late and not machine.started and results["open"] == ["clip-plain-0"], "preparing took the time"


def test_a_running_cell_is_listed_as_running_and_as_stopped_when_nobody_is_there(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path, grid: Any
) -> None:
    def status() -> str:
        found, _ = bench.listed(grid, tmp_path / "work", cells_of(grid), 1)
        return found[0].status

    seen: list[str] = []
    machine.on_poll = lambda child: seen.append(status()) if child.cell == "clip-plain-0" else None
    pretended(methods=["clip"], rates=[0.0], seeds=[0])
    assert set(seen) == {"running"} and status() == "done"
    files = CellFiles(tmp_path / "work" / "cells", "clip-plain-0")
    files.result.unlink()
    files.save(Progress({}, status="running"))
    assert status() == "stopped"


def test_sigterm_while_the_corpus_is_made_ends_as_ctrl_c_does(
    write_grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "corpus_of", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert "interrupted" in told(capsys, str(write_grid()), "--out", str(tmp_path / "work"), code=130)[1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_says_what_is_wrong_with_its_flags(
    write_grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [str(write_grid()), "--out", str(tmp_path / "work")]
    for said, flags in {
        "--methods: 'gates'": ["--methods", "gates"],
        "--jobs -1": ["--jobs", "-1"],
        "--limit-minutes -1": ["--limit-minutes", "-1"],
    }.items():
        assert said in told(capsys, *grid, *flags, code=2)[1]
    assert "no grid 'nowhere'" in told(capsys, "nowhere", "--out", str(tmp_path / "work"), code=2)[1]
    assert not (tmp_path / "work").exists()
