"""Runs on noisy emoji by the demo's recipe, each made once: the corpus, its corrupted tables, the cells."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import truepair

RECIPE = Path(truepair.__file__).with_name("demo.toml")
BATCH = "128"  # twice the steps of the recipe, which a fusion encoder needs


@dataclass(frozen=True)
class Row:
    """A line of the tables: a method, its flags and its towers."""

    name: str
    method: str
    flags: tuple[str, ...]
    model: str


@dataclass(frozen=True)
class Cell:
    """One run: a row at one rate of shuffled captions, with one seed (of the noise, the weights and the order)."""

    row: Row
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name.replace(' ', '-')}-{round(100 * self.rate)}-{self.seed}-{self.row.model}"

    @property
    def flags(self) -> list[str]:
        """Of `truepair train`."""
        named = ["--method", self.row.method, *self.row.flags, "--model", self.row.model, "--batch-size", BATCH]
        return [*named, "--seed", str(self.seed)]


def truepair_(*words: str | Path, log: Path | None = None) -> str:
    """Standard output of a truepair command on one thread."""
    command = [sys.executable, "-m", "truepair", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (log or Path(os.devnull)).open("w") as errors:
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        ).stdout


def once(result: Path, *words: str | Path) -> dict[str, Any]:
    """The JSON object that a truepair command prints, kept in the file `result`: what is done is not done again.

    What it says meanwhile goes to the file of the same name with .log in place of .json.
    """
    if not result.exists():
        printed = truepair_(*words, "--json", "--workers", "0", log=result.parent / f"{result.name[:-5]}.log")
        partial = result.parent / f".{result.name}.partial"
        partial.write_text(printed.splitlines()[-1])
        partial.replace(result)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def trained(name: str, work: Path, table: Path, *flags: str | Path) -> dict[str, Any]:
    """The result of training WORK/cells/NAME by the demo's recipe, on the unseen artist; killed, it goes on."""
    out, emoji = work / "cells" / name, work / "emoji"
    again = ["--resume"] if (out / "run.toml").exists() else []
    evaluated: list[str | Path] = ["--eval.zeroshot", emoji / "zeroshot", "--eval.retrieval", emoji / "test"]
    how: list[str | Path] = ["--config", RECIPE, "--data", table, "--out", out]
    return once(out.parent / f"{name}.json", "train", *how, *evaluated, *flags, *again)


def prepared(work: Path) -> Path:
    """WORK with the emoji corpus in it."""
    (work / "cells").mkdir(parents=True, exist_ok=True)
    if not (work / "emoji" / "zeroshot").exists():
        truepair_("data", "emoji", "--out", work / "emoji")
    return work


def table_of(work: Path, rate: float, seed: int) -> Path:
    """The pair table of a rate and seed."""
    clean, table = work / "emoji" / "train", work / f"noisy-{round(100 * rate)}-{seed}"
    if not rate:
        return clean
    if not table.exists():
        truepair_("corrupt", clean, "--kind", "shuffle", "--rate", str(rate), "--seed", str(seed), "--out", table)
    return table


def shown(values: list[float]) -> str:
    """Mean and standard deviation in percent, of values in [0, 1]."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" if values else ""
