"""Reads a grid from TOML: a path, or the name of one that comes with the package."""

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_origin

from truepair.bench.checks import check
from truepair.bench.grid import EvalSet, Grid, Row, merged
from truepair.config import filled
from truepair.errors import UserError

SHIPPED = Path(__file__).with_name("grids")


def shipped() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_grid(name: str) -> Path:
    """The file of a grid: a path, or the name of a shipped one. Raises UserError if there is none."""
    if (SHIPPED / f"{name}.toml").is_file():
        return SHIPPED / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    raise UserError(f"no grid {name!r}: give the path of a TOML file, or one of {', '.join(shipped())}")


def from_toml(path: Path) -> Grid:
    """Read a grid. Raises UserError naming file and entry for whatever is unknown, missing or makes no sense.

    The options of methods and the models are looked at by `check_methods`.
    """
    values = _toml(path)
    recipe = values.pop("recipe", "")
    if not isinstance(recipe, str):
        raise UserError(f"{path}: recipe = {recipe!r} should be the path of a run's TOML")
    below = _toml(path.parent / recipe) if recipe else {}
    if "model" in below:
        values = {"model": below.pop("model")} | values
    methods, evaluate = (_tables(values, name, path) for name in ("methods", "evaluate"))
    rows = [_row(entry, f"{path} [[methods]] {number}") for number, entry in enumerate(methods, 1)]
    sets = [_filled(EvalSet, entry, f"{path} [[evaluate]] {number}") for number, entry in enumerate(evaluate, 1)]
    sets = sets or [EvalSet("test", "zeroshot", "test")]
    values = {"name": path.stem, "kinds": ["shuffle"], "seeds": [0], "rates": [0.0]} | values
    grid: Grid = _filled(Grid, values | {"methods": rows, "evaluate": sets}, str(path))
    grid.train = merged(below, grid.train)
    grid.rates = [float(rate) if type(rate) is int else rate for rate in grid.rates]
    grid.figure = grid.figure or ("top1" if any(one.zeroshot for one in sets) else "text_to_image_r1")
    if grid.labels and not (path.parent / grid.labels).is_file():
        raise UserError(f"{path}: labels = {grid.labels!r}: there is no such file beside the grid")
    grid.labels = grid.labels and str(path.parent / grid.labels)
    check(grid, str(path))
    return grid


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _tables(values: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    """The tables [[name]], taken out of the values."""
    found = values.pop(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path}: {name} should be tables, each under a line [[{name}]]")
    return found


def _row(values: dict[str, Any], where: str) -> Row:
    row: Row = _filled(Row, values, where)
    row.name = row.name or row.method
    return row


def _filled(kind: Any, values: dict[str, Any], where: str) -> Any:
    """The dataclass of these entries. Raises UserError for one that is missing, unknown or of another type."""
    for entry in fields(kind):
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and entry.name not in values:
            raise UserError(f"{where}: {entry.name} is missing")
        if get_origin(entry.type) is list and type(values.get(entry.name, [])) is not list:
            raise UserError(f"{where}: {entry.name} = {values[entry.name]!r} should be a list")
    return filled(kind, values, where)
