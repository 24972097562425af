"""What a bench is to find out: the rows, kinds of noise, rates and seeds of a grid."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from truepair.config import RunConfig, filled
from truepair.pairs.corpora.tables import Corpus

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

    @property
    def paths(self) -> dict[str, str]:
        """Those that it has, by what they are for."""
        both = {"zeroshot": self.zeroshot, "retrieval": self.retrieval}
        return {name: path for name, path in both.items() if path}


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
    def made(self) -> list[str]:
        """The corpora to make, by their names in `truepair data`; none where the corpus is a folder."""
        names = self.corpus.split("+")
        return names if set(names) <= set(get_args(Corpus)) else []

    @property
    def noisy(self) -> bool:
        """Whether the bench puts noise in anywhere; without it there is nothing for reference lines to say."""
        return any(self.rates)

    @property
    def clip(self) -> Row:
        """The row that the reference lines are made of; one beside the methods where the grid has none."""
        return next((row for row in self.methods if row.plain), Row("clip", "plain clip"))


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


def slug(name: str) -> str:
    """A name as part of a file's. Different names may have the same: `checks` sees to it that a grid's do not."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "row"


def percent(rate: float) -> str:
    """A share as a number of percent."""
    return f"{round(100 * rate, 4):g}"
