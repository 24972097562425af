"""Cells run several at a time, each on its share of the machine; what fails, is killed or runs out of time goes on."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from truepair.bench.cells import Cell, Measured, cells_of
from truepair.bench.children import Child, Place, places
from truepair.bench.grid import Grid
from truepair.bench.runner import Outcome, Task, run_tasks
from truepair.bench.state import CellFiles, difference, evaluated
from truepair.errors import UserError

MADE = {"truepair": "0", "commit": "", "versions": {}, "hardware": {}}
ONE = [Place("1 thread", 0)]
SETS = Measured("noto", [], [])


class Notes:
    """Remembers what it is told of the cells (`runner.Watch`)."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}

    def ended(self, task: Task, progress: Any, result: Any) -> None:
        self.statuses[task.cell.name] = "done" if result else progress.status

    def tick(self, running: Any, now: float) -> None:
        pass


@pytest.fixture
def tasks(grid: Grid, tmp_path: Path) -> list[Task]:
    return [task_of(cell, tmp_path) for cell in cells_of(grid)]


def task_of(cell: Cell, out: Path, commands: Sequence[str] = ("train",), sets: Measured = SETS) -> Task:
    files = CellFiles(out / "cells", cell.name)
    what = {name: ["python", "-m", "truepair", name] for name in commands}
    return Task(cell, files, {"epochs": 2}, lambda place: what, sets)


def run(tasks: list[Task], machine: Any, shares: list[Place] = ONE, **how: Any) -> Outcome:
    return run_tasks(tasks, shares, MADE, Notes(), start=machine, sleep=lambda _: None, **how)


def test_cells_run_in_their_order_and_leave_what_they_found(tasks: list[Task], machine: Any) -> None:
    outcome = run(tasks, machine)
    assert outcome.done == machine.cells == [task.cell.name for task in tasks] and machine.most == 1
    found = json.loads(tasks[2].files.result.read_text())
    assert (found["line"], found["kind"], found["rate"], found["seed"]) == ("oracle filter", "shuffle", 0.4, 0)
    assert found["figures"]["noto"]["top1"] == machine.score("oracle-filter-shuffle-40-0")
    assert found["detection"] == {"auroc": 0.9, "average_precision": 0.8, "ece": 0.1, "mean_p_noise": 0.3}
    assert found["cost"]["samples_per_s"] == 500 and found["cost"]["peak_memory"] == 2**30
    assert all(task.files.status() == "done" for task in tasks)


def test_no_more_cells_run_at_a_time_than_there_are_places(tasks: list[Task], machine: Any) -> None:
    run(tasks, machine, places(3, "auto", ["0", "1"], 16))
    assert machine.most == 3
    gpus = [child.environment["CUDA_VISIBLE_DEVICES"] for child in machine.started]
    assert gpus[:3] == ["0", "1", "0"] and set(gpus) == {"0", "1"}


def test_a_place_is_a_gpu_or_a_share_of_the_cores() -> None:
    shares = places(3, "auto", ["4", "GPU-9"], 16)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "GPU-9", "4"]
    assert [share.workers for share in shares] == [4, 4, 4]
    for device, gpus in (("auto", []), ("cpu", ["0"])):
        (share, other) = places(2, device, gpus, 6)
        assert share == other and share.environment == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
        assert share.workers == 2
    assert places(4, "auto", [], 2)[0].environment["OMP_NUM_THREADS"] == "1"
    assert places(2, "auto", [], 2)[0].workers == 0, "a decoding process would take the core from the training"
    with pytest.raises(UserError, match="--jobs -1"):
        places(-1, "auto", [], 2)


def test_a_cell_that_fails_is_named_with_its_last_words_and_the_others_go_on(tasks: list[Task], machine: Any) -> None:
    machine.broken = {"clip-shuffle-40-0"}
    outcome = run(tasks, machine)
    assert outcome.failed == {"clip-shuffle-40-0": "train: truepair: no such thing"}
    assert len(outcome.done) == len(tasks) - 1
    assert tasks[1].files.status() == "failed" and tasks[1].files.load_result() is None

    machine.broken, machine.started = set(), []
    outcome = run([tasks[1]], machine)
    assert outcome.done == ["clip-shuffle-40-0"] and not outcome.failed
    assert json.loads(tasks[1].files.result.read_text())["cost"]["attempts"] == 2
    assert not tasks[1].files.progress.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_cells_save_and_the_same_call_resumes_them(
    number: int, tasks: list[Task], machine: Any
) -> None:
    def interrupt(child: Any) -> None:
        if child.cell == tasks[2].cell.name and not child.told:
            os.kill(os.getpid(), number)

    machine.on_poll = interrupt
    before = signal.getsignal(number)
    outcome = run(tasks, machine, ONE * 2)
    assert outcome.stopped and signal.getsignal(number) is before
    assert [child.told for child in machine.started if child.told] == [["stop"]] * 2
    begun = set(machine.cells)
    assert {task.files.status() for task in tasks if task.cell.name in begun - set(outcome.done)} == {"killed"}

    machine.on_poll, machine.started = None, []
    left = [task for task in tasks if task.files.status() != "done"]
    assert run(left, machine).done == [task.cell.name for task in left]
    resumed = {child.cell for child in machine.started if "--resume" in child.command}
    assert resumed == begun - set(outcome.done)


def test_a_second_signal_ends_the_cells_at_once(tasks: list[Task], machine: Any) -> None:
    class Stubborn:
        told: ClassVar[list[str]] = []

        def poll(self) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return -9 if "kill" in self.told else None

        def stop(self) -> None:
            self.told.append("stop")

        def kill(self) -> None:
            self.told.append("kill")

    outcome = run(tasks[:1], lambda *given, **named: Stubborn())
    assert outcome.stopped and Stubborn.told[:2] == ["stop", "kill"]


def test_when_the_time_is_up_what_runs_is_saved_and_nothing_new_begins(tasks: list[Task], machine: Any) -> None:
    machine.on_poll = lambda child: now.append(60.0) if child.cell == tasks[2].cell.name else None
    now = [0.0]
    outcome = run(tasks, machine, limit_s=60.0, clock=lambda: now[-1])
    assert outcome.late and not outcome.stopped and not outcome.failed
    assert outcome.done == [task.cell.name for task in tasks[:2]] and len(machine.started) == 3
    assert machine.started[-1].told == ["stop"] and tasks[2].files.status() == "killed"


def test_a_run_that_somebody_else_kills_is_told_and_can_go_on(tasks: list[Task], machine: Any) -> None:
    machine.on_poll = lambda child: child.told.append("kill") if child.cell == "clip-plain-0" else None
    outcome = run(tasks[:2], machine)
    assert outcome.done == ["clip-shuffle-40-0"]
    assert outcome.failed == {"clip-plain-0": "train: killed by others (exit -9)"}
    assert tasks[0].files.status() == "killed"


def test_what_a_run_does_not_measure_itself_is_measured_after_it(grid: Grid, tmp_path: Path, machine: Any) -> None:
    task = task_of(cells_of(grid)[0], tmp_path, ("train", "eval"), Measured("noto", [], ["noto", "bi"]))
    task.commands(ONE[0])["eval"].extend(["run", "--retrieval", "a", "b", "--rerank", "4", "--workers", "0"])
    run([task], machine)
    assert [child.command[3] for child in machine.started] == ["train", "eval"]
    top1 = machine.score("clip-plain-0")
    figures = json.loads(task.files.result.read_text())["figures"]
    assert figures["bi"] == dict.fromkeys(["image_to_text_r1", "text_to_image_r1", "reranked_text_to_image_r1"], top1)
    assert figures["noto"]["reranked_text_to_image_r1"] == top1 and figures["noto"]["top1"] == top1


def test_a_cell_killed_between_its_commands_does_not_train_again(grid: Grid, tmp_path: Path, machine: Any) -> None:
    task = task_of(cells_of(grid)[0], tmp_path, ("train", "eval"), Measured("noto", [], ["bi"]))
    task.commands(ONE[0])["eval"].extend(["run", "--retrieval", "b"])
    machine.on_poll = lambda child: child.told.append("stop") if "eval" in child.command else None
    assert not run([task], machine).done
    machine.on_poll, machine.started = None, []
    assert run([task], machine).done == [task.cell.name]
    assert [child.command[3] for child in machine.started] == ["eval"]


def test_results_of_truepair_eval_go_to_the_sets_in_the_order_they_were_named() -> None:
    def plain(value: float) -> dict[str, Any]:
        metrics = {
            "text_retrieval_recall@1": value,
            "image_retrieval_recall@1": value / 2,
            "text_retrieval_recall@5": 1.0,
        }
        return {"task": "zeroshot_retrieval", "metrics": metrics}

    printed = [
        {"task": "zeroshot_classification", "metrics": {"acc1": 0.5, "acc5": 0.7, "mean_per_class_recall": 0.4}},
        plain(0.1),
        {"task": "zeroshot_retrieval_reranked", "metrics": {"image_retrieval_recall@1": 0.3}},
        plain(0.2),
    ]
    assert evaluated(printed, Measured("a", ["c"], ["b", "c"])) == {
        "b": {"image_to_text_r1": 0.1, "text_to_image_r1": 0.05, "reranked_text_to_image_r1": 0.3},
        "c": {"top1": 0.5, "top5": 0.7, "image_to_text_r1": 0.2, "text_to_image_r1": 0.1},
    }


def test_a_cell_made_by_other_settings_is_never_taken_for_this_one(tasks: list[Task], machine: Any) -> None:
    run(tasks[:1], machine)
    files = tasks[0].files
    assert files.checked({"epochs": 2}, {})
    with pytest.raises(UserError, match=r"epochs = 2, where the grid now asks for 3; choose another --out, or remove"):
        files.checked({"epochs": 3}, {})
    assert difference({}, {"new": 1}, {"new": 1}) == "", "a setting that is younger than the cell was at its default"
    assert "new = 1" in difference({}, {"new": 2}, {"new": 1})
    assert "gone = 4" in difference({"gone": 4}, {}, {})


def test_a_process_tells_how_it_ended_and_what_it_said(tmp_path: Path) -> None:
    code = "import sys; print('{}'); print('said', file=sys.stderr); sys.exit(3)"
    child = Child([sys.executable, "-S", "-c", code], {}, log=tmp_path / "log", out=tmp_path / "out")
    assert wait_for(child) == 3
    assert (tmp_path / "log").read_text() == "said\n" and (tmp_path / "out").read_text() == "{}\n"


def test_a_process_that_is_asked_to_stop_may_end_in_its_own_way(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child = Child([sys.executable, "-S", "-c", code], {"A": "b"}, log=tmp_path / "log", out=tmp_path / "out")
    until(lambda: (tmp_path / "out").read_text() == "ready\n")
    assert child.poll() is None
    child.stop()
    assert wait_for(child) == 130


def wait_for(child: Child) -> Any:
    found: list[Any] = []
    until(lambda: found.append(child.poll()) or found[-1] is not None)
    return found[-1]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited 30 s")
