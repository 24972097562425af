"""`truepair bench` itself: prepares what the cells train on, runs those that are not done, writes what was found."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from truepair.bench.cells import Cell, Pairs, cells_of, commands, config_of, defaults_of, measured, settings_of
from truepair.bench.checks import check_methods
from truepair.bench.children import Child, Place, Start, asked_threads, places, usable_cores, visible_gpus
from truepair.bench.estimate import Screen, said, seconds_left
from truepair.bench.finished import Data, Results, agree, failed_and_open, finished
from truepair.bench.grid import Grid
from truepair.bench.labelled import judge, judged_anew
from truepair.bench.lock import held, interruptible, locked
from truepair.bench.prepare import corpus_of, prepared, training_table
from truepair.bench.provenance import provenance
from truepair.bench.results import gather, write
from truepair.bench.runner import Means, Outcome, Ready, Task, run_tasks
from truepair.bench.state import CellFiles
from truepair.config import to_toml
from truepair.errors import UserError
from truepair.evaluate.labelled import labels_of
from truepair.pairs.table import PairTable
from truepair.report.bench import write_bench_page


@dataclass(frozen=True)
class Listed:
    """A cell in the list: how far it is, seconds spent on it."""

    cell: str
    status: str
    seconds: float
    said: str = ""


def run_bench(
    grid: Grid,
    out: Path,
    cells: Sequence[Cell],
    *,
    jobs: int = 0,
    limit_minutes: float = 0.0,
    console: Console,
    command: str,
    start: Start = Child,
) -> tuple[Outcome, dict[str, Any]]:
    """Run those of `cells` that are not done, in the directory `out`, and write what is known of the whole grid.

    jobs: cells at a time; 0: one for each GPU, one on a CPU. limit_minutes: after so many, the corpus' making among
    them, what runs saves and ends; 0: never. command: what stands in the results as the command. Returns how it went,
    and results.json ({} after a signal, when nothing is written). Raises UserError for whatever does not fit, before
    anything is run; but for the corrupted tables, each of which is made when its first cell's turn has come.
    """
    began = time.monotonic()
    if limit_minutes < 0:
        raise UserError(f"--limit-minutes {limit_minutes:g} makes no sense; 0 sets no limit")
    device = str(grid.train.get("device", "auto"))
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    shares = places(jobs or max(1, len(gpus)), device, gpus, usable_cores(), asked_threads())
    check_methods(grid)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        console.print(f"{grid.name}: cells to have: {len(cells)}, at a time: {len(shares)}; looking at their data")
        with interruptible():
            corpus = corpus_of(grid, out)
            here = Data.of(grid, corpus)
            if grid.labels:
                labels_of(PairTable.open(corpus / grid.table), Path(grid.labels))
            done, _ = finished(grid, out, here)
            _nobody_runs(cells_of(grid), out)
        took = {cell.name: done[cell.name]["cost"]["seconds"] for cell in cells if cell.name in done}
        shop = _Shop(grid, corpus, out, here, done)
        tasks = [shop.task(cell) for cell in cells if cell.name not in done]
        left = said(seconds_left(cells, took, _spent(cells, out), len(shares)))
        console.print(f"{len(took)} of {len(cells)} cells are done; time left: {left}")
        limit = max(0.0, 60 * limit_minutes - (time.monotonic() - began)) if limit_minutes else None
        means = Means(provenance, command, lock, start)
        with Screen(console, cells, took, len(shares), grid.figure) as screen:
            outcome = run_tasks(tasks, shares, means, screen, limit_s=limit)
        return outcome, {} if outcome.stopped else _reported(grid, out)


def report(grid: Grid, out: Path) -> dict[str, Any]:
    """Write results.json, results.parquet, table.md and bench.html of all cells of the grid that are done in `out`.

    Neither corpus nor tables need be there. Returns results.json. Raises UserError if a cell was made by other
    settings than the grid's, or if cells do not have the same data.
    """
    if not out.is_dir():
        raise UserError(f"there is no bench in {out}")
    with locked(out):
        return _reported(grid, out)


def listed(grid: Grid, out: Path, cells: Sequence[Cell], jobs: int) -> tuple[list[Listed], float | None]:
    """Every cell with how far it is, and the seconds until all are done (None: not known). Nothing is made or run."""
    found = []
    took = dict[str, float]()
    at_work = held(out)
    for cell in cells:
        files = CellFiles(out / "cells", cell.name)
        result, progress = files.load_result(), files.load_progress()
        if result:
            took[cell.name] = result["cost"]["seconds"]
            found.append(Listed(cell.name, "done", took[cell.name]))
        elif progress:
            status = "stopped" if progress.status == "running" and not at_work else progress.status
            found.append(Listed(cell.name, status, progress.seconds, progress.said))
        else:
            found.append(Listed(cell.name, "open", 0.0))
    return found, seconds_left(cells, took, _spent(cells, out), max(1, jobs))


def _reported(grid: Grid, out: Path) -> dict[str, Any]:
    """`report` in a directory that is locked."""
    found, lists = finished(grid, out)
    for name, result in found.items() if grid.labels else ():
        files = CellFiles(out / "cells", name)
        if judged_anew(result, files.run, partial(training_table, grid, out), Path(grid.labels)):
            files.finish(result)
    failed, left = failed_and_open(cells_of(grid), found, out)
    results = gather(grid, list(found.values()), noise=lists, failed=failed, left=left)
    write(results, out)
    write_bench_page(results, out / "bench.html")
    return results


@dataclass(frozen=True)
class _Shop:
    """What the cells of a call share. done: results at its beginning. made: pairs that it has prepared, by name."""

    grid: Grid
    corpus: Path
    out: Path
    here: Data
    done: Results
    made: dict[str, Pairs] = field(default_factory=dict)

    def task(self, cell: Cell) -> Task:
        """A cell to run. Its table is made, and its recipe written, when its turn has come."""
        grid, files = self.grid, CellFiles(self.out / "cells", cell.name)
        task = Task(cell, files, partial(self._ready, cell, files), measured(grid, cell.row))
        if not grid.labels:
            return task
        table, labels = self.corpus / grid.table, Path(grid.labels)
        return replace(task, judge=partial(judge, run=files.run, table=table, labels=labels))

    def _ready(self, cell: Cell, files: CellFiles, place: Place) -> Ready:
        grid, pairs = self.grid, self._pairs(cell)
        if cell.oracle and not pairs.matched:
            raise UserError(f"no caption of {pairs.table} fits any more; leave that rate out")
        config = config_of(grid, cell, pairs, files.run)
        settings = settings_of(grid, cell, pairs, config, self.here.held_out)
        files.checked(settings, defaults_of(cell.row.method))
        mine = {"cell": cell.name, "kind": cell.kind, "rate": cell.rate, "seed": cell.seed, "settings": settings}
        agree(self.here.held_out, [*self.done.values(), mine], [])
        config.workers = place.workers if config.workers < 0 else config.workers
        found = commands(grid, cell, config, self.corpus, files.recipe)
        files.folder.mkdir(parents=True, exist_ok=True)
        files.recipe.write_text(to_toml(config), encoding="utf-8")
        return Ready(settings, found)

    def _pairs(self, cell: Cell) -> Pairs:
        name = f"{cell.noise}-{cell.seed if cell.rate else 0}"
        if name not in self.made:
            self.made[name] = prepared(self.grid, cell, self.corpus, self.out)
        return self.made[name]


def _nobody_runs(cells: Sequence[Cell], out: Path) -> None:
    """In a directory that was just locked no cell is running: those that say so were killed outright."""
    for cell in cells:
        files = CellFiles(out / "cells", cell.name)
        progress = files.load_progress()
        if progress and progress.status == "running":
            progress.status = "stopped"
            files.save(progress)


def _spent(cells: Sequence[Cell], out: Path) -> dict[str, float]:
    """Seconds spent on the cells that are begun and not done."""
    begun = {cell.name: CellFiles(out / "cells", cell.name).load_progress() for cell in cells}
    return {name: progress.seconds for name, progress in begun.items() if progress}
