"""Runs cells, several at a time, until all are done, somebody stops it or the time is up; failures stop nothing."""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from truepair.bench.cells import Cell, Measured
from truepair.bench.children import Child, Place, Process, Start
from truepair.bench.found import result_of
from truepair.bench.lock import collected
from truepair.bench.provenance import now
from truepair.bench.state import CellFiles, Progress
from truepair.errors import LONGEST, UserError

TICK = 0.3  # seconds between looks at the children
GRACE = 60.0  # seconds that children have to save and end when the bench itself breaks
INTERRUPTED = (130, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)  # of a run that saved, or was killed by others
ODD = (UserError, LookupError, TypeError, ValueError, AttributeError)  # from files that are not as they should be


@dataclass(frozen=True)
class Ready:
    """What a cell runs: the settings it is made by, and its commands by name, in their order."""

    settings: dict[str, Any]
    commands: Mapping[str, list[str]]


@dataclass(frozen=True)
class Task:
    """A cell to run. ready: prepares what it trains on, when its turn has come and its place is known.

    judge: adds to a result what the run could not know. Both may raise UserError: then the cell has failed.
    """

    cell: Cell
    files: CellFiles
    ready: Callable[[Place], Ready]
    sets: Measured
    judge: Callable[[dict[str, Any]], None] = lambda result: None


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


@dataclass(frozen=True)
class Means:
    """With what all cells are run.

    made: says where and by what figures are made, at the moment. call: the bench's own command. lock: a file
    descriptor that children keep open.
    """

    made: Callable[[], Mapping[str, Any]]
    call: str
    lock: int | None = None
    start: Start = Child
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def run_tasks(
    tasks: Sequence[Task], places: Sequence[Place], means: Means, watch: Watch, *, limit_s: float | None = None
) -> Outcome:
    """Run the tasks in their order, one at each of the places at a time.

    limit_s: then all are asked to save and end, and nothing new is begun. On SIGINT and SIGTERM the children save and
    end; a second one kills them. Whatever else ends this ends the children first.
    """
    outcome, waiting, began = Outcome(), list(tasks), means.clock()
    free, running = list(places), list[Running]()
    told = asked = 0
    with collected() as signals:
        try:
            while waiting or running:
                outcome.late |= limit_s is not None and means.clock() - began >= limit_s
                outcome.stopped |= bool(signals)
                if outcome.stopped or outcome.late:
                    waiting.clear()
                    if not asked or len(signals) > max(told, 1):
                        for one in running:
                            (one.process.kill if len(signals) > 1 else one.process.stop)()
                        asked, told = 1, len(signals)
                if waiting and free:
                    task = waiting.pop(0)
                    try:
                        running.append(_begin(task, free[0], means))
                        free.pop(0)
                    except UserError as error:
                        _refused(task, error, outcome, watch)
                    if waiting and free:  # a signal or the limit may have come meanwhile
                        continue
                for one in list(running):
                    if (code := one.process.poll()) is not None and not _goes_on(one, code, means, bool(asked)):
                        running.remove(one)
                        free.append(one.place)
                        _finish(one, outcome, means, watch)
                watch.tick(running, means.clock())
                if running:
                    means.sleep(TICK)
        finally:
            _end(running, means)
    return outcome


def _begin(task: Task, place: Place, means: Means) -> Running:
    """Start a cell's first command that is not done yet. Raises UserError where there is something wrong with it."""
    files, ready = task.files, task.ready(place)
    progress = files.load_progress() or Progress({})
    progress.settings = ready.settings
    progress.attempts += 1
    progress.status, progress.said = "running", ""
    progress.note(means.made()["commit"], means.call)
    files.folder.mkdir(parents=True, exist_ok=True)
    files.save(progress)
    if progress.printed.keys() >= ready.commands.keys():  # killed after the last one, before the result was written
        progress.printed.popitem()
    commands = {name: words for name, words in ready.commands.items() if name not in progress.printed}
    if "train" in commands and (files.run / "run.toml").exists():
        commands["train"] = [*commands["train"], "--resume"]
    return Running(task, place, progress, commands, _started(task, commands, place, means), means.clock())


def _started(task: Task, commands: Mapping[str, list[str]], place: Place, means: Means) -> Process:
    """The first of the commands, running."""
    log, out = task.files.log, task.files.printed
    return means.start(next(iter(commands.values())), place.environment, log=log, out=out, lock=means.lock)


def _goes_on(one: Running, code: int, means: Means, asked: bool) -> bool:
    """Note a command that has ended; begin the cell's next one, if there is one and nothing stands against it."""
    progress, files = one.progress, one.task.files
    name = next(iter(one.commands))
    progress.seconds += means.clock() - one.began
    progress.status = "stopped"
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
    goes_on = bool(one.commands) and not (asked or code or progress.status == "failed")
    if goes_on:
        progress.status = "running"
    files.save(progress)
    if goes_on:
        one.process = _started(one.task, one.commands, one.place, means)
        one.began = means.clock()
    return goes_on


def _finish(one: Running, outcome: Outcome, means: Means, watch: Watch) -> None:
    """Write what a cell found, or that it found nothing."""
    task, progress, result = one.task, one.progress, None
    if not one.commands:
        made = means.made()
        progress.note(made["commit"], means.call)
        commits = ", then ".join(commit for commit in progress.commits if commit)
        how = {**made, "commit": commits, "calls": progress.calls, "place": one.place.name, "finished": now()}
        try:
            result = result_of(task.cell, progress, task.files, task.sets, how)
            task.judge(result)
        except ODD as error:
            result = None
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            progress.status, progress.said = "failed", f"what it found cannot be read: {why}"[:LONGEST]
            progress.printed.clear()  # all is asked anew
            task.files.save(progress)
    if result is not None:
        task.files.finish(result)
        outcome.done.append(task.cell.name)
    elif progress.said:
        outcome.failed[task.cell.name] = progress.said
    watch.ended(task, progress, result)


def _refused(task: Task, error: UserError, outcome: Outcome, watch: Watch) -> None:
    """A cell that could not begin has failed."""
    progress = task.files.load_progress() or Progress({})
    progress.status, progress.said = "failed", str(error)
    task.files.save(progress)
    outcome.failed[task.cell.name] = progress.said
    watch.ended(task, progress, None)


def _end(running: Sequence[Running], means: Means) -> None:
    """Let whatever still runs save and end, and wait for it; what takes too long is killed."""
    left = [one.process for one in running]
    for process in left:
        process.stop()
    until = means.clock() + GRACE
    while left := [process for process in left if process.poll() is None]:
        if means.clock() > until:
            for process in left:
                process.kill()
        means.sleep(TICK)


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
