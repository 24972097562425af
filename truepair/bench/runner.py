"""Runs cells, several at a time, until all are done, somebody stops it or the time is up; failures stop nothing."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from truepair.bench.cells import Cell, Measured
from truepair.bench.children import Child, Place, Process, Start
from truepair.bench.state import CellFiles, Progress, result_of
from truepair.errors import LONGEST

TICK = 0.3  # seconds between looks at the children
INTERRUPTED = (130, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)  # of a run that saved, or was killed by others


@dataclass(frozen=True)
class Task:
    """A cell ready to run. commands: its parts, given the place where it runs. settings: what it is made by."""

    cell: Cell
    files: CellFiles
    settings: dict[str, Any]
    commands: Callable[[Place], Mapping[str, list[str]]]
    sets: Measured


@dataclass
class Running:
    """A cell at work."""

    task: Task
    place: Place
    progress: Progress
    commands: dict[str, list[str]]  # those still to be done, the first one at work
    process: Process
    began: float


@dataclass
class Outcome:
    """How it went. failed: cell -> its last words. stopped: a signal came. late: the time was up."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    late: bool = False


class Watch(Protocol):
    """Whoever is told how it goes."""

    def ended(self, task: Task, progress: Progress, result: Mapping[str, Any] | None) -> None:
        """A cell has ended for now; result: what it found, if it is done."""

    def tick(self, running: Sequence[Running], now: float) -> None:
        """Some time has passed."""


def run_tasks(
    tasks: Sequence[Task],
    places: Sequence[Place],
    made: Mapping[str, Any],
    watch: Watch,
    *,
    limit_s: float | None = None,
    lock: int | None = None,
    start: Start = Child,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Run the tasks in their order, one at each of the places at a time.

    made: what stands in a result of where and by what it was made. limit_s: then all are asked to save and end, and
    nothing new is begun. lock: a file descriptor that children keep open. On SIGINT and SIGTERM the children save and
    end; a second one kills them.
    """
    outcome, waiting, began = Outcome(), list(tasks), clock()
    free, running = list(places), list[Running]()
    told = asked = 0
    with _signals() as signals:
        while waiting or running:
            outcome.late |= limit_s is not None and clock() - began >= limit_s
            outcome.stopped |= bool(signals)
            if outcome.stopped or outcome.late:
                waiting.clear()
                if not asked or len(signals) > max(told, 1):
                    for one in running:
                        (one.process.kill if len(signals) > 1 else one.process.stop)()
                    asked, told = 1, len(signals)
            while waiting and free:
                place = free.pop(0)
                running.append(_begin(waiting.pop(0), place, start, lock, clock()))
            for one in list(running):
                if (code := one.process.poll()) is not None and not _goes_on(
                    one, code, start, lock, clock(), bool(asked)
                ):
                    running.remove(one)
                    free.append(one.place)
                    _finish(one, outcome, made, watch)
            watch.tick(running, clock())
            if running:
                sleep(TICK)
    return outcome


def _begin(task: Task, place: Place, start: Start, lock: int | None, now: float) -> Running:
    files = task.files
    progress = files.load_progress() or Progress(task.settings)
    progress.attempts += 1
    progress.status, progress.said = "killed", ""  # until it is known better
    files.folder.mkdir(parents=True, exist_ok=True)
    files.save(progress)
    every = task.commands(place)
    if progress.printed.keys() >= every.keys():  # killed after the last command, before the result was written
        progress.printed.popitem()
    commands = {name: words for name, words in every.items() if name not in progress.printed}
    if "train" in commands and (files.run / "run.toml").exists():
        commands["train"] = [*commands["train"], "--resume"]
    process = start(next(iter(commands.values())), place.environment, log=files.log, out=files.printed, lock=lock)
    return Running(task, place, progress, commands, process, now)


def _goes_on(one: Running, code: int, start: Start, lock: int | None, now: float, asked: bool) -> bool:
    """Note a command that has ended; begin the cell's next one, if there is one and nothing stands against it."""
    progress, files = one.progress, one.task.files
    name = next(iter(one.commands))
    progress.seconds += now - one.began
    if code == 0:
        if printed := _last_object(files):
            progress.printed[name] = printed
            del one.commands[name]
        else:
            progress.status, progress.said = "failed", f"{name}: printed no result"
    elif not (asked or code in INTERRUPTED):
        progress.status, progress.said = "failed", f"{name}: {_last_words(files) or f'exit {code}'}"
    elif not asked:
        progress.said = f"{name}: killed by others (exit {code})"
    files.save(progress)
    if not one.commands or asked or code or progress.status == "failed":
        return False
    command = next(iter(one.commands.values()))
    one.process = start(command, one.place.environment, log=files.log, out=files.printed, lock=lock)
    one.began = now
    return True


def _finish(one: Running, outcome: Outcome, made: Mapping[str, Any], watch: Watch) -> None:
    """Write what a cell found, or that it found nothing."""
    task, progress, result = one.task, one.progress, None
    if not one.commands:
        how = {**made, "place": one.place.name, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        result = result_of(task.cell, progress, task.files, task.sets, how)
        task.files.finish(result)
        outcome.done.append(task.cell.name)
    elif progress.said:
        outcome.failed[task.cell.name] = progress.said
    watch.ended(task, progress, result)


def _last_object(files: CellFiles) -> dict[str, Any] | None:
    """The JSON object that a command printed as its last line."""
    lines = files.printed.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last_words(files: CellFiles) -> str:
    """The last line of a log that says something."""
    text = files.log.read_text(encoding="utf-8", errors="replace") if files.log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else ""


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT comes."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
