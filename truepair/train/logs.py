"""What a run says while it goes: metrics.jsonl, the progress bar, TensorBoard and Weights & Biases."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from truepair.config import LogConfig
from truepair.errors import UserError

PERIOD = 60.0  # seconds between two lines where there is no bar


class RunLog:
    """Writer of a run's figures, on rank 0; silent on the others."""

    def __init__(self, run: Path, config: LogConfig, *, steps: int, start: int, speaks: bool) -> None:
        self.path = run / "metrics.jsonl"
        self.speaks = speaks
        self.console = Console(stderr=True, quiet=not speaks, soft_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.3f} · {task.fields[rate]:,.0f} samples/s · {task.fields[wait]:.0%} data wait"
            ),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not speaks or not self.console.is_terminal,
        )
        self.steps, self.start = steps, start
        self._task = self.progress.add_task("", total=steps, completed=start, loss=math.nan, rate=0.0, wait=0.0)
        self._sinks = _sinks(run, config) if speaks else []
        if speaks:
            cut(self.path, start)
            self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "RunLog":
        self.progress.start()
        self._began = self._said = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.speaks:
            self._file.close()
        for sink in self._sinks:
            sink.close()

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """One line of metrics.jsonl: what kind of line, after which step, the figures (NaN as null)."""
        if not self.speaks:
            return
        clean = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in figures.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.write({f"{kind}/{name}": v for name, v in clean.items() if isinstance(v, int | float)}, step)

    def written(self, kind: str, step: int) -> dict[str, Any]:
        """The figures of a line that is there already, {} if there is none."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            entry: dict[str, Any] = json.loads(line)
            if (entry.pop("kind"), entry.pop("step")) == (kind, step):
                return {name: value for name, value in entry.items() if name != "epoch"}
        return {}

    def advance(self, step: int, description: str, loss: float, rate: float, wait: float) -> None:
        """Move the bar; where there is no terminal to draw one on, say where the run is once a minute."""
        self.progress.update(self._task, completed=step, description=description, loss=loss, rate=rate, wait=wait)
        now = time.perf_counter()
        if self.progress.disable and now - self._said >= PERIOD:
            seconds = (self.steps - step) * (now - self._began) / max(1, step - self.start)
            self.say(
                f"{description}: step {step:,} of {self.steps:,} · loss {loss:.3f} · {rate:,.0f} samples/s · "
                f"{wait:.0%} data wait · {timedelta(seconds=round(seconds))} left"
            )
            self._said = now

    def say(self, text: str, style: str = "") -> None:
        """A line above the bar."""
        self.console.print(text, style=style, markup=False, highlight=False)


def cut(path: Path, step: int) -> None:
    """Drop a .jsonl's lines after `step` and a last one cut short: those steps are about to be done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the line a kill cut short
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)


class _TensorBoard:
    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--log.tensorboard needs: pip install 'truepair[tensorboard]'") from None
        self.writer: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, run: Path, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--log.wandb needs: pip install 'truepair[wandb]'") from None
        self.run: Any = wandb.init(project=project, name=run.name, dir=str(run), id=run.name, resume="allow")

    def write(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()


def _sinks(run: Path, config: LogConfig) -> list[Any]:
    sinks: list[Any] = [_TensorBoard(run)] if config.tensorboard else []
    return [*sinks, _WandB(run, config.wandb)] if config.wandb else sinks


class Clock:
    """Times the iteration of an iterable apart from what is done with its items: throughput and share of data wait."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.started = time.perf_counter()
        self.waited = 0.0

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, with the time spent waiting for each of them added up."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield item

    def read(self, samples: int) -> tuple[float, float]:
        """(samples a second, share of the time spent waiting for data) since the last reset."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return samples / seconds, self.waited / seconds


class Pace:
    """Says every `seconds` how far work on `total` pairs is; to be called with the number of pairs just done.

    The first call is about those that were done before, by another process: they tell nothing of the pace.
    """

    def __init__(self, say: Callable[[str], None], total: int, seconds: float = PERIOD) -> None:
        self.say, self.total, self.seconds = say, total, seconds
        self.before = self.done = 0
        self.started = self.said = math.nan

    def __call__(self, count: int) -> None:
        now = time.perf_counter()
        self.done = min(self.done + count, self.total)
        if math.isnan(self.started):
            self.before, self.started, self.said = self.done, now, now
        elif now - self.said >= self.seconds and self.done > self.before:
            rate = (self.done - self.before) / (now - self.started)
            left = timedelta(seconds=round((self.total - self.done) / rate))
            self.say(f"{self.done:,} of {self.total:,} pairs · {rate:,.0f} pairs/s · {left} left")
            self.said = now


class _Rate(ProgressColumn):
    """How many a second, lately."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s")


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for work that reports each few of `total` that are done; yields what it has to call."""
    columns = (
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
