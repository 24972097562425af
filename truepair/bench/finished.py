"""Which cells of a grid are done, and whether all of them belong into its tables: same settings, same data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truepair.bench.cells import (
    UNKNOWN,
    Cell,
    cells_of,
    config_of,
    defaults_of,
    names_of_sets,
    settings_of,
    told_by_data,
)
from truepair.bench.digests import of_sets, of_table
from truepair.bench.grid import Grid
from truepair.bench.prepare import NoiseList, read_list
from truepair.bench.state import CellFiles
from truepair.errors import UserError
from truepair.pairs.table import PairTable

Results = dict[str, dict[str, Any]]  # by cell


@dataclass(frozen=True)
class Data:
    """Digests of a corpus that is at hand. held_out: by the names of their settings."""

    pairs: str
    held_out: Mapping[str, str]

    @classmethod
    def of(cls, grid: Grid, corpus: Path) -> "Data":
        """Opens all tables and class folders. Raises UserError for one that cannot be opened."""
        return cls(of_table(PairTable.open(corpus / grid.table)), of_sets(grid, corpus))


def finished(grid: Grid, out: Path, here: Data | None = None) -> tuple[Results, list[NoiseList]]:
    """The results of all cells of the grid that are done in `out`, and the published lists of their noise.

    here: the corpus, where it is at hand. Raises UserError for a cell, done or only begun, of other settings than the
    grid's, and for cells and lists that do not have the same data.
    """
    found: Results = {}
    every, held_out = cells_of(grid), here.held_out if here else {}
    for cell in every:
        files = CellFiles(out / "cells", cell.name)
        settings = settings_of(grid, cell, UNKNOWN, config_of(grid, cell, UNKNOWN, files.run), held_out)
        unknown = told_by_data(grid, cell) - held_out.keys()
        if result := files.checked(settings, defaults_of(cell.row.method), unknown):
            found[cell.name] = result
    noises = {f"{cell.noise}-{cell.seed}" for cell in every if cell.rate}
    lists = [read_list(file, out) for file in sorted((out / "noise").glob("*.parquet")) if file.stem in noises]
    agree(names_of_sets(grid), found.values(), lists, here)
    return found, lists


def agree(
    held_out: Iterable[str], cells: Iterable[Mapping[str, Any]], lists: Iterable[NoiseList], here: Data | None = None
) -> None:
    """Raise UserError unless there is one digest of the pairs without noise, of each noise and of each held-out set.

    held_out: the settings in which the latter stand. Whoever tells one first is believed: the corpus, the lists, cells.
    """
    told: dict[str, tuple[str, str]] = {}

    def tell(what: str, digest: str, who: str) -> None:
        known, first = told.setdefault(what, (digest, who))
        if digest != known:
            raise UserError(
                f"{who} has other {what} ({digest}) than {first} ({known}), so they are not of one table; choose "
                "another --out, or remove what is not of this grid's corpus"
            )

    held_out = list(held_out)
    if here:
        tell("pairs without noise", here.pairs, "the corpus")
        for name, digest in here.held_out.items():
            tell(name, digest, "the corpus")
    for one in lists:
        tell("pairs without noise", one.corpus, one.file)
        tell(_pairs(one.kind, one.rate, one.seed), one.result, one.file)
    for cell in cells:
        settings, who = cell["settings"], f"cell {cell['cell']}"
        tell(_pairs(cell["kind"], cell["rate"], cell["seed"]), settings.get("pairs", "none"), who)
        for name in held_out:
            tell(name, settings.get(name, "none"), who)


def _pairs(kind: str, rate: float, seed: int) -> str:
    return f"pairs with {rate:g} of {kind} noise, seed {seed}" if rate else "pairs without noise"


def failed_and_open(cells: Iterable[Cell], found: Results, out: Path) -> tuple[dict[str, str], list[str]]:
    """The cells that are not done: those that failed, with their last words, and the others."""
    failed, left = dict[str, str](), []
    for cell in cells:
        if cell.name in found:
            continue
        progress = CellFiles(out / "cells", cell.name).load_progress()
        if progress and progress.status == "failed":
            failed[cell.name] = progress.said
        else:
            left.append(cell.name)
    return failed, left
