"""`truepair bench` itself: prepares what the cells train on, runs those that are not done, writes what was found."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from truepair.bench.cells import Cell, Pairs, cells_of, commands, config_of, defaults_of, measured, settings_of
from truepair.bench.children import Child, Place, Start, places, usable_cores, visible_gpus
from truepair.bench.estimate import Screen, said, seconds_left
from truepair.bench.grid import Grid, check_methods
from truepair.bench.labelled import against_labels
from truepair.bench.prepare import corpus_of, prepared, read_list
from truepair.bench.provenance import provenance
from truepair.bench.results import gather, write
from truepair.bench.runner import Outcome, Task, run_tasks
from truepair.bench.state import CellFiles
from truepair.config import to_toml
from truepair.errors import UserError
from truepair.report.bench import write_bench_page

UNKNOWN = Pairs(Path(), None, "", 1, 1)  # what a cell trains on, where its table is not at hand


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

    jobs: cells at a time; 0: one for each GPU, one on a CPU. limit_minutes: then what runs saves and ends; 0: never.
    command: what stands in the results as the command. Returns how it went, and results.json ({} after a signal, when
    nothing is written). Raises UserError for whatever does not fit, before anything is run.
    """
    if limit_minutes < 0:
        raise UserError(f"--limit-minutes {limit_minutes:g} makes no sense; 0 sets no limit")
    device = str(grid.train.get("device", "auto"))
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    shares = places(jobs or max(1, len(gpus)), device, gpus, usable_cores())
    check_methods(grid)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        console.print(
            f"{grid.name}: cells to have: {len(cells)}, at a time: {len(shares)}; preparing what they train on"
        )
        corpus = corpus_of(grid, out)
        tasks, took = _tasks(grid, cells, corpus, out)
        left = said(seconds_left(cells, took, _spent(cells, out), len(shares)))
        console.print(f"{len(took)} of {len(cells)} cells are done; time left: {left}")
        limit = 60 * limit_minutes or None
        with Screen(console, cells, took, len(shares), grid.figure) as screen:
            outcome = run_tasks(tasks, shares, provenance(), screen, limit_s=limit, lock=lock, start=start)
        return outcome, {} if outcome.stopped else report(grid, out, command)


def report(grid: Grid, out: Path, command: str) -> dict[str, Any]:
    """Write results.json, results.parquet, table.md and bench.html of all cells of the grid that are done in `out`.

    Returns results.json. Raises UserError if a cell was made by other settings than the grid's.
    """
    every = cells_of(grid)
    found, failed, left = [], dict[str, str](), []
    for cell in every:
        files = CellFiles(out / "cells", cell.name)
        result = files.load_result()
        if result is None:
            progress = files.load_progress()
            if progress and progress.status == "failed":
                failed[cell.name] = progress.said
            else:
                left.append(cell.name)
            continue
        settings = settings_of(grid, cell, UNKNOWN, config_of(grid, cell, UNKNOWN, files.run))
        for name in ("pairs", *(["epochs"] if cell.oracle else [])):  # which only the table can tell
            settings[name] = result["settings"][name]
        files.checked(settings, defaults_of(cell.row.method))
        if grid.labels and not cell.oracle:
            result["detection"] |= against_labels(files.run, Path(grid.labels))
        found.append(result)
    noises = {f"{cell.noise}-{cell.seed}" for cell in every if cell.rate}
    lists = [read_list(file, out) for file in sorted((out / "noise").glob("*.parquet")) if file.stem in noises]
    results = gather(grid, found, command=command, noise=lists, failed=failed, left=left)
    write(results, out)
    write_bench_page(results, out / "bench.html")
    return results


def listed(grid: Grid, out: Path, cells: Sequence[Cell], jobs: int) -> tuple[list[Listed], float | None]:
    """Every cell with how far it is, and the seconds until all are done (None: not known). Nothing is made or run."""
    found = []
    took = dict[str, float]()
    for cell in cells:
        files = CellFiles(out / "cells", cell.name)
        result, progress = files.load_result(), files.load_progress()
        if result:
            took[cell.name] = result["cost"]["seconds"]
            found.append(Listed(cell.name, "done", took[cell.name]))
        elif progress:
            found.append(Listed(cell.name, progress.status, progress.seconds, progress.said))
        else:
            found.append(Listed(cell.name, "open", 0.0))
    return found, seconds_left(cells, took, _spent(cells, out), max(1, jobs))


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold the directory: a file descriptor that children inherit, so that runs which outlive a killed bench count too.

    Raises UserError if somebody else holds it.
    """
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another bench, or a run that a killed one left behind, is at work in {out}; wait for it or stop it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _tasks(grid: Grid, cells: Sequence[Cell], corpus: Path, out: Path) -> tuple[list[Task], dict[str, float]]:
    """What there is to run, and the seconds of each cell that is done. Raises UserError where settings changed."""
    made: dict[tuple[str, int], Pairs] = {}
    tasks, took = [], dict[str, float]()
    for cell in cells:
        where = (cell.noise, cell.seed if cell.rate else 0)
        if where not in made:
            made[where] = prepared(grid, cell, corpus, out)
        pairs, files = made[where], CellFiles(out / "cells", cell.name)
        if cell.oracle and not pairs.matched:
            raise UserError(f"cell {cell.name}: no caption of {pairs.table} fits any more; leave that rate out")
        settings = settings_of(grid, cell, pairs, config_of(grid, cell, pairs, files.run))
        if result := files.checked(settings, defaults_of(cell.row.method)):
            took[cell.name] = result["cost"]["seconds"]
        else:
            at = _commands(grid, cell, pairs, files, corpus)
            tasks.append(Task(cell, files, settings, at, measured(grid, cell.row)))
    return tasks, took


def _commands(
    grid: Grid, cell: Cell, pairs: Pairs, files: CellFiles, corpus: Path
) -> Callable[[Place], Mapping[str, list[str]]]:
    """The commands of a cell once its place is known; its recipe is written then."""

    def at(place: Place) -> Mapping[str, list[str]]:
        config = config_of(grid, cell, pairs, files.run)
        config.workers = place.workers if config.workers < 0 else config.workers
        found = commands(grid, cell, config, corpus, files.recipe)
        files.recipe.write_text(to_toml(config), encoding="utf-8")
        return found

    return at


def _spent(cells: Sequence[Cell], out: Path) -> dict[str, float]:
    """Seconds spent on the cells that are begun and not done."""
    begun = {cell.name: CellFiles(out / "cells", cell.name).load_progress() for cell in cells}
    return {name: progress.seconds for name, progress in begun.items() if progress}
