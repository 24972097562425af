"""What a grid may not say: whatever makes no sense is refused before anything runs, in one line."""

from typing import Any

from truepair.bench.grid import (
    CLEAN,
    FIGURES,
    ORACLE,
    OWN,
    Grid,
    options_of,
    percent,
    run_config,
    slug,
)
from truepair.config import filled
from truepair.errors import UserError
from truepair.noise.injection import KINDS


def check_methods(grid: Grid) -> None:
    """Raise UserError for a method, an option or a model's name that does not exist, and for re-ranking without ITM.

    Loads torch and open_clip.
    """
    import open_clip

    from truepair.methods import method_class

    for row in [grid.clip, *grid.methods]:
        kind = method_class(row.method)
        for noisy in (False, True):
            where = f"grid {grid.name}, row {row.name}"
            options = filled(kind.Options, options_of(row, noisy), f"{where}: options")
            if row.rerank and not getattr(options, "itm", 0.0):  # the weight of ITM, where a method can have it
                raise UserError(f"{where}: rerank needs a fusion encoder with ITM; method {row.method} has none here")
        model = row.model or grid.model
        if ":" not in model and model not in open_clip.list_models():
            raise UserError(f"{where}: no model of the name {model!r}; docs/training.md, Model")


def check(grid: Grid, where: str) -> None:
    """Refuse what makes no sense. Raises UserError."""
    for name, found in (("seeds", grid.seeds), ("rates", grid.rates), ("methods", grid.methods)):
        if not found:
            raise UserError(f"{where}: {name} is empty")
    for seed in grid.seeds:
        if type(seed) is not int or seed < 0:
            raise UserError(f"{where}: seeds has {seed!r}; they are whole numbers of 0 or more")
    for rate in grid.rates:
        if type(rate) is not float or not 0 <= rate < 1:
            raise UserError(f"{where}: rates has {rate!r}; they are shares of the pairs, from 0 to less than 1")
    for kind in grid.kinds:
        if kind not in KINDS:
            raise UserError(f"{where}: kinds has {kind!r}; choose among {', '.join(KINDS)}")
    if grid.noisy and not grid.kinds:
        raise UserError(f"{where}: kinds is empty; choose among {', '.join(KINDS)}")
    if grid.figure not in FIGURES:
        raise UserError(f"{where}: figure = {grid.figure!r} should be one of {', '.join(FIGURES)}")
    if grid.labels and grid.noisy:
        raise UserError(
            f"{where}: labels are for noise that nobody knows; at rates above 0 the truth is known: leave out either"
        )
    _check_names(grid, where)
    _check_sets(grid, where)
    for section, entries in [("[train]", grid.train)] + [(f"row {row.name}: train", row.train) for row in grid.methods]:
        if own := [name for name in entries if name in OWN]:
            raise UserError(f"{where} {section}: {own[0]} is not set there; docs/bench.md says where it is")
    for row in [grid.clip, *grid.methods]:
        run_config(grid, row)


def _check_names(grid: Grid, where: str) -> None:
    """Two cells may not share their files, nor two lines or columns a place in the tables."""
    names = [row.name for row in grid.methods]
    beside = [CLEAN, ORACLE] + [grid.clip.name] * (grid.noisy and grid.clip not in grid.methods)
    taken = {_file_name(name): name for name in beside}
    if same := [name for name in names if _file_name(name) in taken]:
        there = taken[_file_name(same[0])]
        raise UserError(f"{where}: the row {same[0]!r} is called like the line {there!r} that stands in every table")
    several: dict[str, list[Any]] = {"seeds": grid.seeds, "rates": grid.rates, "kinds": grid.kinds}
    several |= {"rates, in percent as tables show them,": [percent(rate) for rate in grid.rates]}
    several |= {"methods, by file name,": [_file_name(name) for name in names]}
    several |= {"evaluate, by name,": [one.name for one in grid.evaluate]}
    for name, values in several.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{where}: {name} has {twice[0]!r} twice")


def _file_name(name: str) -> str:
    """What files of a line are called, on a disk that may know no capitals."""
    return slug(name).lower()


def _check_sets(grid: Grid, where: str) -> None:
    for one in grid.evaluate:
        if not (one.zeroshot or one.retrieval):
            raise UserError(f"{where}: the held-out set {one.name!r} has neither zeroshot nor retrieval")
    needs = "zeroshot" if grid.figure == "top1" or grid.figure == "top5" else "retrieval"
    if not any(getattr(one, needs) for one in grid.evaluate):
        raise UserError(f"{where}: figure = {grid.figure!r} needs a held-out set with {needs}; there is none")
    for row in grid.methods:
        if row.rerank < 0:
            raise UserError(f"{where}: row {row.name}: rerank = {row.rerank}; 0 leaves it out")
        if row.rerank and not any(one.retrieval for one in grid.evaluate):
            raise UserError(f"{where}: row {row.name}: rerank needs a held-out set with retrieval")
