"""How long the cells that are left will take, from those that are done; and how it goes, in the terminal."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from truepair.bench.cells import Cell
from truepair.bench.found import newest_step
from truepair.bench.runner import Running, Task
from truepair.bench.state import Progress


def seconds_of(cells: Sequence[Cell], took: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each cell took or, as far as can be told, will take; {} if none is done.

    took: cell -> seconds, of those that are done. A cell will take the mean of its line, else that of all lines.
    """
    lines: dict[str, list[float]] = {}
    for cell in cells:
        if cell.name in took:
            lines.setdefault(cell.line, []).append(took[cell.name])
    if not lines:
        return {}
    means = {line: statistics.mean(values) for line, values in lines.items()}
    usual = statistics.mean(means.values())
    return {cell.name: took.get(cell.name, means.get(cell.line, usual)) for cell in cells}


def seconds_left(
    cells: Sequence[Cell], took: Mapping[str, float], spent: Mapping[str, float], jobs: int
) -> float | None:
    """Seconds until all cells are done, `jobs` at a time; None if that cannot be told yet.

    spent: cell -> seconds spent on it so far, of those that are begun and not done.
    """
    every = seconds_of(cells, took)
    left = [max(every[cell.name] - spent.get(cell.name, 0.0), 0.0) for cell in cells if every and cell.name not in took]
    return max(sum(left) / jobs, max(left, default=0.0)) if every else None


def said(seconds: float | None) -> str:
    """A duration for people."""
    return "not known before a cell is done" if seconds is None else str(timedelta(seconds=round(seconds)))


class Screen:
    """Shows how far the cells are: bars in a terminal, a line a cell elsewhere (`runner.Watch`).

    cells: all those of this call. took: seconds of those that were done before.
    """

    def __init__(
        self, console: Console, cells: Sequence[Cell], took: Mapping[str, float], jobs: int, figure: str
    ) -> None:
        self.console, self.cells, self.took, self.jobs, self.figure = console, cells, dict(took), jobs, figure
        columns = (TextColumn("{task.description:36}"), BarColumn(24), TextColumn("{task.fields[said]}"))
        self.bars = Bars(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self.total = self.bars.add_task("", total=len(cells), completed=len(took), said="")
        self.running: dict[str, TaskID] = {}

    def __enter__(self) -> "Screen":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def ended(self, task: Task, progress: Progress, result: Mapping[str, Any] | None) -> None:
        """A cell is done, has failed, or was stopped."""
        name = task.cell.name
        if name in self.running:
            self.bars.remove_task(self.running.pop(name))
        if result is None:
            self.console.print(f"{name}: {progress.status}{progress.said and ': '}{progress.said}")
            return
        self.took[name] = progress.seconds
        scores = [figures[self.figure] for figures in result["figures"].values() if self.figure in figures]
        score = f"{self.figure} {100 * statistics.mean(scores):.1f}" if scores else "no figure"
        left = said(seconds_left(self.cells, self.took, {}, self.jobs))
        self.console.print(
            f"{name}: {score} in {progress.seconds:.0f} s ({len(self.took)} of {len(self.cells)}; left {left})"
        )

    def tick(self, running: Sequence[Running], now: float) -> None:
        """Move the bars."""
        if self.bars.disable:
            return
        spent = {one.task.cell.name: one.progress.seconds + now - one.began for one in running}
        done = len(self.took)
        left = said(seconds_left(self.cells, self.took, spent, self.jobs))
        self.bars.update(
            self.total, completed=done, description=f"{done} of {len(self.cells)} cells", said=f"left {left}"
        )
        for one in running:
            name = one.task.cell.name
            if name not in self.running:
                self.running[name] = self.bars.add_task(f"  {name}", total=1.0, said="starting")
            if step := newest_step(one.task.files.run):
                epochs = one.progress.settings["epochs"]
                text = f"epoch {step['epoch']:.1f} of {epochs} · {step['samples_per_s']:,.0f} samples/s"
                self.bars.update(self.running[name], completed=step["epoch"] / epochs, said=text)
