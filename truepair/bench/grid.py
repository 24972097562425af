"""What a bench is to find out: the rows, kinds of noise, rates and seeds of a grid, read from TOML."""

import copy
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from truepair.config import RunConfig, filled
from truepair.errors import UserError
from truepair.noise.injection import KINDS

SHIPPED = Path(__file__).with_name("grids")
CLEAN, ORACLE = "clip, clean", "oracle filter"  # the two lines beside the methods; no row may be called so
OWN = ("data", "out", "method", "model", "seed", "keep", "eval", "options")  # of a run: the grid says these otherwise
FIGURES = {  # of an evaluation: what stands above it; shares, shown in percent
    "top1": "top-1",
    "top5": "top-5",
    "image_to_text_r1": "R@1 image→text",
    "text_to_image_r1": "R@1 text→image",
    "reranked_text_to_image_r1": "re-ranked: R@1 text→image",
}


@dataclass
class Row:
    """A line of the tables: a method and how it is run."""

    method: str  # one of docs/methods.md
    name: str = ""  # what the line is called; empty: as the method
    model: str = ""  # towers of this row alone; empty: the grid's
    options: dict[str, Any] = field(default_factory=dict)  # of the method
    noisy_options: dict[str, Any] = field(default_factory=dict)  # the same, where captions were corrupted
    train: dict[str, Any] = field(default_factory=dict)  # entries of a run that differ from the grid's [train]
    rerank: int = 0  # nearest of each query that the row's fusion encoder puts in order too; 0: it is not asked

    @property
    def plain(self) -> bool:
        """Whether this is CLIP as the grid would run it: what the two reference lines are made of."""
        own = self.model or self.options or self.noisy_options or self.train
        return self.method == "clip" and not own


@dataclass
class EvalSet:
    """One held-out set. Its paths are below the corpus' folder, or absolute; one of the two may be empty."""

    name: str
    zeroshot: str = ""  # image folder or CLIP_benchmark dataset
    retrieval: str = ""  # pair table


@dataclass
class CorpusOptions:
    """What `truepair data` is asked for, where the corpus is made here."""

    n: int = 2000  # scenes: training pairs
    size: int = 64  # pixels
    seed: int = 0


@dataclass
class Grid:
    """A grid as its file says it; `methods` and `evaluate` have an entry at least."""

    name: str
    corpus: str  # one that `truepair data` makes, or a folder with the tables
    model: str  # of every row
    seeds: list[int]  # of noise, weights and order; run one after the other, in the order written
    rates: list[float]  # share of the pairs whose captions are corrupted; run in the order written
    kinds: list[str]  # of noise, as of `truepair corrupt`
    methods: list[Row]
    evaluate: list[EvalSet]
    about: str = ""  # a sentence for the page
    table: str = "train"  # the pair table to train on, below the corpus' folder
    labels: str = ""  # labels.csv of some of the table's rows: detection is measured on them, where no truth is known
    untouched: str = "clean"  # what the corpus is called as it is, at rate 0
    figure: str = ""  # which figure is the score; empty: top1, or text_to_image_r1 where no set has classes
    corpus_options: CorpusOptions = field(default_factory=CorpusOptions)
    train: dict[str, Any] = field(default_factory=dict)  # entries of a run, those of the recipe among them

    @property
    def noises(self) -> list[tuple[str, float]]:
        """(kind, rate) of the columns, in the order in which they are run; the kind of rate 0 is ""."""
        pairs = ((kind if rate else "", rate) for rate in self.rates for kind in self.kinds or [""])
        return list(dict.fromkeys(pairs))

    @property
    def noisy(self) -> bool:
        """Whether the bench puts noise in anywhere; without it there is nothing for reference lines to say."""
        return any(self.rates)

    @property
    def clip(self) -> Row:
        """The row that the reference lines are made of; one beside the methods where the grid has none."""
        return next((row for row in self.methods if row.plain), Row("clip", "plain clip"))


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
    _check(grid, str(path))
    return grid


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of both, those of `above` where both have one; sections are merged likewise."""
    found = copy.deepcopy(dict(below))
    for name, value in above.items():
        inner = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if inner else copy.deepcopy(value)
    return found


def run_config(grid: Grid, row: Row) -> RunConfig:
    """What is the same in all runs of a row. Raises UserError for entries that a run does not have."""
    where = f"grid {grid.name}, row {row.name}: [train]"
    config: RunConfig = filled(RunConfig, merged(grid.train, row.train), where)
    config.method, config.model = row.method, row.model or grid.model
    return config


def options_of(row: Row, noisy: bool) -> dict[str, Any]:
    """The options of a row's method, on a corrupted table or the corpus' own."""
    return row.options | (row.noisy_options if noisy else {})


def check_methods(grid: Grid) -> None:
    """Raise UserError for a method, an option or a model's name that does not exist. Loads torch and open_clip."""
    import open_clip

    from truepair.methods import method_class

    for row in [grid.clip, *grid.methods]:
        kind = method_class(row.method)
        for noisy in (False, True):
            filled(kind.Options, options_of(row, noisy), f"grid {grid.name}, row {row.name}: options")
        model = row.model or grid.model
        if ":" not in model and model not in open_clip.list_models():
            raise UserError(
                f"grid {grid.name}, row {row.name}: no model of the name {model!r}; docs/training.md, Model"
            )


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


def _check(grid: Grid, where: str) -> None:
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
    names = [row.name for row in grid.methods]
    if reserved := {CLEAN, ORACLE} & set(names):
        raise UserError(f"{where}: a row of the name {reserved.pop()!r} stands in every table already")
    several: dict[str, list[Any]] = {"seeds": grid.seeds, "rates": grid.rates, "kinds": grid.kinds}
    several |= {"methods, by file name,": [slug(name) for name in names]}
    several |= {"evaluate, by name,": [one.name for one in grid.evaluate]}
    for name, values in several.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{where}: {name} has {twice[0]!r} twice")
    _check_sets(grid, where)
    for section, entries in [("[train]", grid.train)] + [(f"row {row.name}: train", row.train) for row in grid.methods]:
        if own := [name for name in entries if name in OWN]:
            raise UserError(f"{where} {section}: {own[0]} is not set there; docs/bench.md says where it is")
    for row in [grid.clip, *grid.methods]:
        run_config(grid, row)


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


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "row"


def percent(rate: float) -> str:
    """A share as a number of percent."""
    return f"{round(100 * rate, 4):g}"
