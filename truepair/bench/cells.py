"""The cells of a grid: which runs there are, in which order, by what settings and commands each is made."""

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truepair.bench.grid import ORACLE, Grid, Row, merged, options_of, percent, run_config, slug
from truepair.config import RunConfig
from truepair.errors import UserError

ELSEWHERE = (  # entries of a run that depend on where it runs, and change nothing in what it learns
    *("data", "out", "keep", "eval", "log"),
    *("workers", "device", "checkpoint_steps", "checkpoint_minutes"),
)
RERANK, BY_RUN = "rerank", "evaluate.first"  # settings: nearest to re-rank, the held-out set that the run measures


@dataclass(frozen=True)
class Cell:
    """One run: a row, at one kind and rate of noise, with one seed (of noise, weights and order).

    oracle: it trains on the truly matched pairs alone, as many samples as the others see.
    """

    row: Row
    kind: str
    rate: float
    seed: int
    oracle: bool = False

    @property
    def line(self) -> str:
        """The line of the tables that it belongs to."""
        return ORACLE if self.oracle else self.row.name

    @property
    def noise(self) -> str:
        """Kind and rate, as part of a file's name."""
        return f"{self.kind}-{percent(self.rate)}" if self.rate else "plain"

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{slug(self.line)}-{self.noise}-{self.seed}"


@dataclass(frozen=True)
class Pairs:
    """What a cell trains on, as prepared. matched: of its rows with a caption, those whose caption fits."""

    table: Path
    keep: Path | None  # the row list of the truly matched pairs
    digest: str  # of images and captions in force
    rows: int  # with a caption
    matched: int


UNKNOWN = Pairs(Path(), None, "", 1, 1)  # where tables are not at hand


def cells_of(
    grid: Grid, *, methods: Sequence[str] = (), rates: Sequence[float] = (), seeds: Sequence[int] = ()
) -> list[Cell]:
    """All cells of a grid in the order in which they run, or those of the lines, rates and seeds that are named.

    Seed by seed, so that a part of them is a whole table of fewer seeds: first plain CLIP without noise, then for each
    noise all rows, the oracle filter after CLIP. Raises UserError for a name that is not in the grid.
    """
    chosen: dict[str, tuple[Sequence[Any], list[Any]]] = {
        "--methods": (methods, [ORACLE, *dict.fromkeys([grid.clip.name, *(row.name for row in grid.methods)])]),
        "--rates": (rates, list(dict.fromkeys([0.0, *grid.rates]))),
        "--seeds": (seeds, grid.seeds),
    }
    for flag, (wanted, known) in chosen.items():
        if unknown := [value for value in wanted if value not in known]:
            raise UserError(f"{flag}: {unknown[0]!r} is not in grid {grid.name}; it has {', '.join(map(str, known))}")
    cells: list[Cell] = []
    for seed in grid.seeds:
        cells += [Cell(grid.clip, "", 0.0, seed)] if grid.noisy else []
        for kind, rate in grid.noises:
            for row in grid.methods:
                cells.append(Cell(row, kind, rate, seed))
                if row is grid.clip and rate:
                    cells.append(Cell(row, kind, rate, seed, oracle=True))
            if rate and grid.clip not in grid.methods:
                cells.append(Cell(grid.clip, kind, rate, seed, oracle=True))
    once: dict[str, Cell] = {}
    for cell in cells:
        if once.setdefault(cell.name, cell) != cell:
            raise UserError(f"grid {grid.name}: two different cells would be called {cell.name}; rename a row")
    wanted = [
        cell
        for cell in once.values()
        if (not methods or cell.line in methods)
        and (not rates or cell.rate in rates)
        and (not seeds or cell.seed in seeds)
    ]
    if not wanted:
        raise UserError(f"grid {grid.name} has no cell of these --methods, --rates and --seeds together")
    return wanted


def config_of(grid: Grid, cell: Cell, pairs: Pairs, run: Path) -> RunConfig:
    """The complete configuration of a cell's run in the directory `run`.

    The oracle filter has fewer pairs an epoch, so it makes more epochs: as many as come nearest to the others' number
    of steps.
    """
    from truepair.methods import method_class

    config = run_config(grid, cell.row)
    kind = method_class(config.method).Options
    config.options = dataclasses.asdict(kind(**options_of(cell.row, bool(cell.rate))))
    config.data, config.out, config.seed = str(pairs.table), str(run), cell.seed
    if "keep_checkpoints" not in merged(grid.train, cell.row.train).get("log", {}):
        config.log.keep_checkpoints = 1  # of many runs, each of which is resumed from its newest alone
    if cell.oracle:
        config.keep = str(pairs.keep)
        steps = [max(1, n // config.batch_size) for n in (pairs.rows, pairs.matched)]
        config.epochs = max(1, round(config.epochs * steps[0] / steps[1]))
    return config


def settings_of(grid: Grid, cell: Cell, pairs: Pairs, config: RunConfig, held_out: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides what a cell's figures are, by dotted name: two cells alike in it need not both be run.

    held_out: digests of the held-out sets (`digests.of_sets`).
    """
    found = {name: value for name, value in flat(config).items() if name.partition(".")[0] not in ELSEWHERE}
    found |= {"corrupted.kind": cell.kind, "corrupted.rate": cell.rate, "oracle": cell.oracle}
    found |= {"pairs": pairs.digest, "rows": pairs.matched if cell.oracle else pairs.rows}
    found |= {"corpus": f"{grid.corpus}/{grid.table}"}
    if grid.made:
        found |= {f"corpus_options.{name}": value for name, value in vars(grid.corpus_options).items()}
    found |= {RERANK: cell.row.rerank, BY_RUN: grid.evaluate[0].name}
    for one in grid.evaluate:
        found |= {f"evaluate.{one.name}.{what}": path for what, path in one.paths.items()}
    plain: dict[str, Any] = json.loads(json.dumps({**found, **held_out}))  # tuples are lists, as in a file
    return plain


def names_of_sets(grid: Grid) -> list[str]:
    """The settings in which the digests of a grid's held-out sets stand."""
    return [f"evaluate.{one.name}.{what}.digest" for one in grid.evaluate for what in one.paths]


def told_by_data(grid: Grid, cell: Cell) -> set[str]:
    """The settings of a cell that only corpus and tables can tell."""
    return {"pairs", "rows", *names_of_sets(grid)} | ({"epochs"} if cell.oracle else set())


def unused(made: Mapping[str, Any], asked: Mapping[str, Any], finished: Collection[str]) -> set[str]:
    """Settings on which nothing rests yet in a cell that is not done: those of evaluations that are still to come.

    made, asked: its settings then and now. finished: names of its finished commands. The run itself rests on none of
    the held-out sets; `train` has measured the first of them.
    """
    if "eval" in finished:
        return set()
    evaluation = {name for name in [*made, *asked] if name == RERANK or name.startswith("evaluate.")}
    if "train" not in finished:
        return evaluation
    first = f"evaluate.{made.get(BY_RUN)}."
    return {name for name in evaluation if name != BY_RUN and not name.startswith(first)}


def flat(config: RunConfig) -> dict[str, Any]:
    """A configuration's entries by dotted name."""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def defaults_of(method: str) -> dict[str, Any]:
    """What a run of a method has where nothing else is said, by dotted name."""
    from truepair.methods import method_class

    found = flat(RunConfig(options=dataclasses.asdict(method_class(method).Options())))
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


@dataclass(frozen=True)
class Measured:
    """Names of held-out sets: the one that the run evaluates itself, and those of `truepair eval`, in its order."""

    run: str
    zeroshot: list[str]
    retrieval: list[str]


def measured(grid: Grid, row: Row) -> Measured:
    """Who evaluates what. Re-ranking is left to `truepair eval`, so it has all sets with a retrieval table then."""
    first, *others = grid.evaluate
    ranked = grid.evaluate if row.rerank else others
    return Measured(first.name, [one.name for one in others if one.zeroshot], [o.name for o in ranked if o.retrieval])


def commands(grid: Grid, cell: Cell, config: RunConfig, corpus: Path, recipe: Path) -> dict[str, list[str]]:
    """The commands that make a cell: `train`, and `eval` for what the run does not measure itself.

    config: as `config_of` gives it; what it evaluates is put in here. recipe: where it will be written.
    """
    by_name = {one.name: one.paths for one in grid.evaluate}
    what = measured(grid, cell.row)
    first = by_name[what.run]
    config.eval.zeroshot, config.eval.retrieval = (
        str(corpus / first[name]) if name in first else "" for name in ("zeroshot", "retrieval")
    )
    truepair = [sys.executable, "-m", "truepair"]
    found = {"train": [*truepair, "train", "--config", str(recipe), "--json"]}
    flags: list[str] = []
    for name, sets in (("zeroshot", what.zeroshot), ("retrieval", what.retrieval)):
        flags += [f"--{name}", *(str(corpus / by_name[one][name]) for one in sets)] if sets else []
    if flags:
        flags += ["--rerank", str(cell.row.rerank)] if cell.row.rerank else []
        how = ["--workers", str(config.workers), "--device", config.device, "--json"]
        found["eval"] = [*truepair, "eval", config.out, *flags, *how]
    return found
