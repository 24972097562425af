"""What a bench leaves to read: results.json, results.parquet and table.md, from the cells that are done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truepair.bench import summary
from truepair.bench.digests import of_file
from truepair.bench.grid import Grid
from truepair.bench.prepare import NoiseList
from truepair.bench.provenance import now, provenance
from truepair.bench.state import known, write_json
from truepair.pairs.columns import Values, whole, write_parquet

WHERE = ("truepair", "commit", "versions", "hardware")  # of what a cell says of its making, the same for many
REFERENCES = (
    "Mean ± standard deviation of the seeds, in percent. *clip, clean*: CLIP without noise, the same beside every "
    "rate; *oracle filter*: CLIP on the truly matched pairs alone, as many samples as the others see."
)


def gather(
    grid: Grid,
    cells: Sequence[Mapping[str, Any]],
    *,
    noise: Sequence[NoiseList],
    failed: Mapping[str, str],
    left: Sequence[str],
) -> dict[str, Any]:
    """Everything of a bench in one object, results.json; the same for the same cells.

    cells: results of those that are done. failed: cell -> its last words. left: cells that are still to be run.
    Settings that all cells share stand once, under `settings`; what made them under `machines`, by number; date and
    machine of the whole are those of the cell that was done last. `commands` are those of all benches that ran the
    cells, in the order in which the cells were done.
    """
    every = [cell["settings"] for cell in cells]
    first = every[0] if every else {}
    shared = {name: value for name, value in first.items() if all(one.get(name, not value) == value for one in every)}
    machines: list[dict[str, Any]] = []
    shortened = []
    for cell in cells:
        machine = {name: cell["made"][name] for name in WHERE}
        if machine not in machines:
            machines.append(machine)
        made = {name: value for name, value in cell["made"].items() if name not in WHERE}
        settings = {name: value for name, value in cell["settings"].items() if name not in shared}
        shortened.append({**cell, "settings": settings, "made": {**made, "machine": machines.index(machine)}})
    in_order = sorted(cells, key=lambda cell: str(cell["made"]["finished"]))
    made = in_order[-1]["made"] if cells else provenance() | {"finished": now()}
    return {
        "grid": described(grid),
        "date": made["finished"],
        "commands": list(dict.fromkeys(call for cell in in_order for call in cell["made"]["calls"])),
        **{name: made[name] for name in WHERE},
        "machines": machines,
        "settings": shared,
        "cells": shortened,
        "failed": dict(failed),
        "open": list(left),
        "noise": [vars(one) for one in noise],
    }


def described(grid: Grid) -> dict[str, Any]:
    """A grid as results.json holds it: what tables and pages need of it."""
    return {
        "name": grid.name,
        "about": grid.about,
        "corpus": grid.corpus,
        "model": grid.model,
        "figure": grid.figure,
        "untouched": grid.untouched,
        "clip": grid.clip.name,
        "seeds": grid.seeds,
        "noises": [list(noise) for noise in grid.noises],
        "sets": [one.name for one in grid.evaluate],
        "methods": [vars(row) for row in grid.methods],
        "train": grid.train,
        "labels": {"file": Path(grid.labels).name, "digest": of_file(Path(grid.labels))} if grid.labels else None,
    }


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write results.json, results.parquet and table.md into `out`."""
    write_json(out / "results.json", results)
    write_parquet(out / "results.parquet", long_form(results))
    with whole(out / "table.md") as partial:
        partial.write_text("\n".join(page(results)) + "\n", encoding="utf-8")


def long_form(results: Mapping[str, Any]) -> dict[str, Values]:
    """Columns with a row for each cell and figure.

    cell, line, method, kind, rate, seed, oracle name the cell; set is the held-out set ("": none); value is a share in
    [0, 1] for figures of an evaluation, else in the figure's own unit (seconds, bytes, samples a second).
    """
    names = ("cell", "line", "method", "kind", "rate", "seed", "oracle")
    found: dict[str, list[Any]] = {name: [] for name in (*names, "set", "figure", "value")}
    for cell in results["cells"]:
        groups = [*cell["figures"].items(), *(("", cell[part]) for part in ("detection", "mined", "cost"))]
        for held_out, figures in [*groups, ("", {"steps": cell["steps"]})]:
            for name, value in figures.items():
                if known(value):
                    row = [*(cell[one] for one in names), held_out, name, float(value)]
                    for column, entry in zip(found.values(), row, strict=True):
                        column.append(entry)
    return {**found}


def page(results: Mapping[str, Any]) -> list[str]:
    """The lines of table.md: a dated page with what was run on what, and all tables."""
    grid = results["grid"]
    lines = [f"# {results['date'][:10]}, {grid['name']}", ""]
    lines += [grid["about"], ""] if grid["about"] else []
    commands = ["```", *results["commands"], "```", ""] if results["commands"] else []
    lines += [f"{made_on(results)}.", "", *commands, progress(results), ""]
    for number, (title, figure, held_out) in enumerate(summary.figures_of(results)):
        lines += [f"## {title}", ""]
        lines += [REFERENCES, ""] if number == 0 and any(rate for _, rate in grid["noises"]) else []
        lines += [*summary.score_table(results, figure=figure, held_out=held_out), ""]
    if detection := summary.detection_table(results):
        said = f"p_noise after the last epoch against {summary.measure(results)}, means"
        said += "; own: AUROC of the method's own opinion." if any("(own" in line for line in detection) else "."
        lines += ["## Finding the mismatched pairs", "", said, "", *detection, ""]
    if results["cells"]:
        lines += [
            "## Cost",
            "",
            summary.COST,
            "",
        ]
        lines += [*summary.cost_table(results), ""]
    if results["failed"]:
        lines += ["## Failed", ""]
        lines += [*(f"* {cell}: {' '.join(said.split())}" for cell, said in results["failed"].items()), ""]
    return lines


def made_on(results: Mapping[str, Any]) -> str:
    """Hardware, versions and commits in a sentence, without its full stop."""
    hardware = results["hardware"]
    where = [hardware["processor"], f"{hardware['cores']} cores", f"{hardware['memory_gib']:g} GiB"]
    where += sorted(set(hardware["gpus"])) or ["no GPU"]
    packages = [f"{name} {number}" for name, number in results["versions"].items()]
    commits = sorted({machine["commit"] for machine in results["machines"]} - {""})
    said = f"{', '.join(where)}; {', '.join(packages)}; truepair {results['truepair']}"
    said += f", commit{'s' * (len(commits) > 1)} {', '.join(commits)}" if commits else ""
    several = len({str(machine["hardware"]) for machine in results["machines"]}) > 1
    return said + ("; other cells were made on other machines (results.json)" if several else "")


def progress(results: Mapping[str, Any]) -> str:
    """How much of the grid is there, in a sentence or two."""
    done, grid = len(results["cells"]), results["grid"]
    total = done + len(results["failed"]) + len(results["open"])
    seeds = len({cell["seed"] for cell in results["cells"]})
    said = f"{done} of {total} cells done, {seeds} of {len(grid['seeds'])} seeds."
    lists = len(results["noise"])
    return said + (f" Which rows are corrupted, and how: {lists} lists in noise/." if lists else "")
