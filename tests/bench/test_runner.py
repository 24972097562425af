"""Cells run several at a time, each on its share of the machine; what fails, is killed or runs out of time goes on."""

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from truepair.bench.cells import Cell, Measured, cells_of
from truepair.bench.children import Place, places
from truepair.bench.found import evaluated, newest_step
from truepair.bench.grid import Grid
from truepair.bench.runner import Means, Outcome, Ready, Task, run_tasks
from truepair.bench.state import CellFiles, difference
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
    return Task(cell, files, lambda place: Ready({"epochs": 2}, what), sets)


def words_of(task: Task) -> dict[str, list[str]]:
    """The commands of a task, to be added to."""
    return dict(task.ready(ONE[0]).commands)


def run(tasks: list[Task], machine: Any, shares: list[Place] = ONE, **how: Any) -> Outcome:
    named = {"made": lambda: MADE, "call": "truepair bench"} | {n: how.pop(n) for n in ("made", "clock") if n in how}
    means = Means(**named, start=machine, sleep=lambda _: None)  # type: ignore[arg-type]
    return run_tasks(tasks, shares, means, Notes(), **how)


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
    assert {task.files.status() for task in tasks if task.cell.name in begun - set(outcome.done)} == {"stopped"}

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
    assert machine.started[-1].told == ["stop"] and tasks[2].files.status() == "stopped"


def test_a_run_that_somebody_else_kills_is_told_and_can_go_on(tasks: list[Task], machine: Any) -> None:
    machine.on_poll = lambda child: child.told.append("kill") if child.cell == "clip-plain-0" else None
    outcome = run(tasks[:2], machine)
    assert outcome.done == ["clip-shuffle-40-0"]
    assert outcome.failed == {"clip-plain-0": "train: killed by others (exit -9)"}
    assert tasks[0].files.status() == "stopped"


def test_what_a_run_does_not_measure_itself_is_measured_after_it(grid: Grid, tmp_path: Path, machine: Any) -> None:
    task = task_of(cells_of(grid)[0], tmp_path, ("train", "eval"), Measured("noto", [], ["noto", "bi"]))
    words_of(task)["eval"].extend(["run", "--retrieval", "a", "b", "--rerank", "4", "--workers", "0"])
    run([task], machine)
    assert [child.command[3] for child in machine.started] == ["train", "eval"]
    top1 = machine.score("clip-plain-0")
    figures = json.loads(task.files.result.read_text())["figures"]
    assert figures["bi"] == dict.fromkeys(["image_to_text_r1", "text_to_image_r1", "reranked_text_to_image_r1"], top1)
    assert figures["noto"]["reranked_text_to_image_r1"] == top1 and figures["noto"]["top1"] == top1


def test_a_cell_killed_between_its_commands_does_not_train_again(grid: Grid, tmp_path: Path, machine: Any) -> None:
    task = task_of(cells_of(grid)[0], tmp_path, ("train", "eval"), Measured("noto", [], ["bi"]))
    words_of(task)["eval"].extend(["run", "--retrieval", "b"])
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


ODD = {
    "what it found cannot be read: KeyError: 'peak_memory'": {"steps": 10, "figures": {}},
    "what it found cannot be read: TypeError: ": {"steps": 10, "figures": {"top1": 1}, "peak_memory": 1, "results": 3},
    "what it found cannot be read: AttributeError: ": {"steps": 10, "figures": 3, "peak_memory": 1},
}


@pytest.mark.parametrize(("said", "printed"), ODD.items(), ids=range(len(ODD)))
def test_a_cell_that_printed_something_odd_has_failed_and_the_others_go_on(
    said: str, printed: dict[str, Any], grid: Grid, tmp_path: Path, machine: Any
) -> None:
    usual = machine.printed
    odd = cells_of(grid)[0].name
    machine.printed = lambda cell, command: printed if cell == odd else usual(cell, command)
    tasks = [
        task_of(cell, tmp_path, ("train", "eval") if "results" in printed else ("train",)) for cell in cells_of(grid)
    ]
    outcome = run(tasks, machine, ONE * 2)
    assert outcome.failed[odd].startswith(said) and len(outcome.done) == len(tasks) - 1
    assert tasks[0].files.status() == "failed"

    machine.printed, machine.started = usual, []
    assert run(tasks[:1], machine).done == [odd] and "train" in machine.started[0].command, "all is asked anew"


def test_metrics_that_cannot_be_read_fail_their_cell_alone(tasks: list[Task], machine: Any) -> None:
    def spoil(child: Any) -> None:
        if child.cell == tasks[0].cell.name and child.polls == 0:
            child.begin_run = lambda: (
                (child.out.parent / child.cell).mkdir()
                or (child.out.parent / child.cell / "metrics.jsonl").write_text('{"kind": "train", "epoch"}\n')
            )

    machine.on_poll = spoil
    outcome = run(tasks, machine)
    assert outcome.failed[tasks[0].cell.name].startswith("what it found cannot be read: JSONDecodeError")
    assert len(outcome.done) == len(tasks) - 1
    assert newest_step(tasks[0].files.run) is None, "looking on does not end the bench either"


def test_a_cell_that_cannot_be_prepared_has_failed_and_the_others_go_on(tasks: list[Task], machine: Any) -> None:
    def refuse(place: Place) -> Ready:
        raise UserError("the list was drawn for another corpus")

    first = dataclasses.replace(tasks[0], ready=refuse)
    outcome = run([first, *tasks[1:]], machine)
    assert outcome.failed == {first.cell.name: "the list was drawn for another corpus"}
    assert len(outcome.done) == len(tasks) - 1 and first.files.status() == "failed"
    assert first.files.checked({"epochs": 3}, {}) is None, "it was made by no settings yet"
    assert run([tasks[0]], machine).done == [first.cell.name]


def test_when_the_bench_itself_breaks_the_cells_save_and_end_first(tasks: list[Task], machine: Any) -> None:
    def full(child: Any) -> None:
        if not child.told and len(machine.running) > 1:
            raise OSError(28, "No space left on device")

    machine.on_poll = full
    with pytest.raises(OSError, match="No space"):
        run(tasks, machine, ONE * 2)
    assert [child.told for child in machine.started] == [["stop"]] * 2
    assert all((child.out.parent / child.cell / "metrics.jsonl").exists() for child in machine.started), "waited for"


def test_a_result_tells_the_commits_at_beginning_and_end_and_all_commands(tasks: list[Task], machine: Any) -> None:
    commits = iter(["a", "a", "b", "c", "d"])
    run(tasks[:1], machine, made=lambda: MADE | {"commit": next(commits)})
    assert json.loads(tasks[0].files.result.read_text())["made"]["commit"] == "a"
    machine.on_poll = lambda child: child.told.append("stop") if child.cell == tasks[1].cell.name else None
    run(tasks[1:2], machine, made=lambda: MADE | {"commit": next(commits)})
    machine.on_poll = None
    run(tasks[1:2], machine, made=lambda: MADE | {"commit": next(commits)})
    made = json.loads(tasks[1].files.result.read_text())["made"]
    assert made["commit"] == "b, then c, then d" and made["calls"] == ["truepair bench"]


def test_a_cell_made_by_other_settings_is_never_taken_for_this_one(tasks: list[Task], machine: Any) -> None:
    run(tasks[:1], machine)
    files = tasks[0].files
    assert files.checked({"epochs": 2}, {})
    with pytest.raises(
        UserError, match=r"epochs = 2, where the grid now asks for 3; choose another --out, or remove"
    ) as no:
        files.checked({"epochs": 3}, {})
    assert f"remove {files.run} and {files.run}.* to have" in str(no.value), "and not NAME*, which is NAME0's too"
    assert difference({}, {"new": 1}, {"new": 1}) == "", "a setting that is younger than the cell was at its default"
    assert "new = 1" in difference({}, {"new": 2}, {"new": 1})
    assert "gone = 4" in difference({"gone": 4}, {}, {})
