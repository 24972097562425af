"""The verb `bench`: many runs, one table."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console, finish
from truepair.cli.settings import Flag
from truepair.errors import UserError


@dataclass
class Bench:
    """Run methods x kinds of noise x rates x seeds as a grid says, and put what they reach into one table and page.

    Each cell is an ordinary run in OUT/cells. Killed at any moment, or out of time, the same command goes on; cells
    that are done are not run again. OUT/bench.html, table.md, results.json and results.parquet hold the results.

    Examples:
      truepair bench emoji-cpu --out work --jobs 2
      truepair bench emoji-cpu --out work --list
      truepair bench grid.toml --out work --methods clip gate --rates 0 0.4 --seeds 0
      truepair bench icons-gpu --out work --jobs 4 --limit-minutes 9
    """

    grid: tyro.conf.Positional[str]  # a TOML file, or the name of a grid that comes with truepair (docs/bench.md)
    out: Path  # directory for corpus, corrupted tables, cells and results
    jobs: int = 0  # cells at a time, each on one GPU or its share of the cores; 0: as many as GPUs, or 1
    methods: tuple[str, ...] = ()  # run these lines of the tables alone, by name
    rates: tuple[float, ...] = ()  # run these noise rates alone
    seeds: tuple[int, ...] = ()  # run these seeds alone
    limit_minutes: float = 0.0  # then what runs is saved and the results are written; 0: no limit
    list: Flag = False  # tell how far each cell is and how long the rest takes; run none
    report_only: Flag = False  # write the results of the cells that are done; run none
    json: Flag = False  # print one JSON object as the last line


def bench(args: Bench) -> dict[str, Any]:
    from truepair.bench.bench import listed, report, run_bench
    from truepair.bench.cells import cells_of
    from truepair.bench.estimate import said
    from truepair.bench.reading import find_grid, from_toml

    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs} makes no sense; 0 chooses by the number of GPUs")
    grid = from_toml(find_grid(args.grid))
    cells = cells_of(grid, methods=args.methods, rates=args.rates, seeds=args.seeds)
    if args.list:
        found, left = listed(grid, args.out, cells, args.jobs)
        for one in found:
            spent = f"{one.seconds:6.0f} s" if one.seconds else ""
            console.print(f"{one.cell:40} {one.status:7} {spent} {one.said}".rstrip())
        console.print(f"{sum(one.status == 'done' for one in found)} of {len(found)} cells done; left: {said(left)}")
        return {"cells": [dataclasses.asdict(one) for one in found], "seconds_left": left}
    if args.report_only:
        return _told(args, report(grid, args.out))
    how: dict[str, Any] = {"jobs": args.jobs, "limit_minutes": args.limit_minutes}
    outcome, results = run_bench(grid, args.out, cells, **how, console=console, command=command_of(args))
    if outcome.stopped:
        console.print("interrupted; what is done is kept, the same command goes on")
        return {"out": args.out, "done": len(outcome.done), "interrupted": True}
    result = _told(args, results) | {"late": outcome.late}
    if outcome.late:
        console.print("the time is up; the same command goes on")
    if outcome.failed:
        finish(result, args.json)
        name, last_words = next(iter(outcome.failed.items()))
        several = f"{len(outcome.failed)} cells failed, the first of them " if len(outcome.failed) > 1 else "cell "
        raise UserError(
            f"{several}{name}: {last_words} ({args.out / 'cells' / name}.log); the same command tries again"
        )
    return result


def command_of(args: Bench) -> str:
    """The command as it stands in the results: what decides them, not how it was watched."""
    words = ["truepair", "bench", args.grid, "--out", str(args.out)]
    words += ["--jobs", str(args.jobs)] if args.jobs else []
    for flag, values in (("--methods", args.methods), ("--rates", args.rates), ("--seeds", args.seeds)):
        words += (
            [flag, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)] if values else []
        )
    return shlex.join(words)


def _told(args: Bench, results: dict[str, Any]) -> dict[str, Any]:
    """Print the table of scores; what --json says."""
    from truepair.bench.results import progress
    from truepair.bench.summary import figures_of, score_table

    if results["cells"]:
        console.print(f"{figures_of(results)[0][0]}, mean ± standard deviation of the seeds")
        for line in score_table(results):
            console.print(line)
    console.print(progress(results))
    console.print(f"page: {args.out / 'bench.html'}; tables: {args.out / 'table.md'}")
    return {
        "grid": results["grid"]["name"],
        "out": args.out,
        "done": len(results["cells"]),
        "open": len(results["open"]),
        "failed": results["failed"],
        "page": args.out / "bench.html",
    }
