"""A small grid to bend, and commands that only pretend: what a run and an evaluation would have left."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from truepair.bench import bench
from truepair.bench.cells import cells_of
from truepair.bench.grid import Grid
from truepair.bench.reading import from_toml

GRID = """
name = "small"
corpus = "scenes"
model = "truepair-test"
rates = [0.4, 0.0]
seeds = [0, 1]

[corpus_options]
n = 200
size = 32

[train]
epochs = 2
batch_size = 32

[[methods]]
method = "clip"

[[methods]]
name = "gate, soft"
method = "gate"
options = { power = 0.5 }
"""


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small grid with pieces of its text replaced, {old: new}."""

    def write(changes: Mapping[str, str] | None = None, name: str = "grid.toml") -> Path:
        text = GRID
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def grid(write_grid: Callable[..., Path]) -> Grid:
    return from_toml(write_grid())


@dataclass
class Pretended:
    """A command that ends after some polls. What it leaves depends on its arguments alone."""

    machine: "Machine"
    command: Sequence[str]
    environment: Mapping[str, str]
    out: Path
    log: Path
    polls: int = 2
    told: list[str] = field(default_factory=list)

    @property
    def cell(self) -> str:
        """Its cell's name."""
        return self.out.name.removeprefix(".").removesuffix(".out")

    def poll(self) -> int | None:
        self.polls -= 1
        if self.machine.on_poll:
            self.machine.on_poll(self)
        if "kill" in self.told:
            return -9
        if "stop" in self.told:
            self.begin_run()
            return 130
        if self.polls > 0:
            return None
        self.machine.running.remove(self)
        if self.cell in self.machine.broken:
            self.log.write_text("step 1\ntruepair: no such thing\n\n")
            return 2
        self.begin_run()
        self.out.write_text(json.dumps(self.machine.printed(self.cell, self.command)) + "\n")
        return 0

    def begin_run(self) -> None:
        run = self.out.parent / self.cell
        run.mkdir(exist_ok=True)
        (run / "run.toml").write_text("")
        train = {"kind": "train", "epoch": 1.0, "samples_per_s": 500.0}
        noise = {"kind": "noise", "epoch": 1, "auroc": 0.9, "average_precision": 0.8, "ece": 0.1, "mean_p_noise": 0.3}
        (run / "metrics.jsonl").write_text(json.dumps(train) + "\n" + json.dumps(noise) + "\n")

    def stop(self) -> None:
        self.told.append("stop")

    def kill(self) -> None:
        self.told.append("kill")


@dataclass
class Machine:
    """Starts pretended commands and remembers them. broken: cells whose commands fail. score: cell -> top-1."""

    broken: set[str] = field(default_factory=set)
    score: Callable[[str], float] = lambda cell: random.Random(cell).random()
    on_poll: Callable[[Pretended], None] | None = None
    started: list[Pretended] = field(default_factory=list)
    running: list[Pretended] = field(default_factory=list)
    most: int = 0

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, out: Path, lock: int | None
    ) -> Pretended:
        child = Pretended(self, command, environment, out, log)
        self.started.append(child)
        self.running.append(child)
        self.most = max(self.most, len(self.running))
        return child

    def printed(self, cell: str, command: Sequence[str]) -> dict[str, Any]:
        top1 = self.score(cell)
        if "eval" not in command[:4]:
            figures = {"top1": top1, "top5": top1 / 2, "image_to_text_r1": 0.1, "text_to_image_r1": 0.2}
            return {"steps": 10, "figures": figures, "peak_memory": 2**30}
        recall = {f"{way}_retrieval_recall@1": top1 for way in ("image", "text")}
        results = []
        for flag, task, metrics in (
            ("--zeroshot", "zeroshot_classification", {"acc1": top1, "acc5": 0.9}),
            ("--retrieval", "zeroshot_retrieval", recall),
        ):
            if flag in command:
                after = command[command.index(flag) + 1 :]
                count = next((n for n, word in enumerate(after) if word.startswith("--")), len(after))
                one = [{"task": task, "metrics": metrics}]
                ranked = [{"task": "zeroshot_retrieval_reranked", "metrics": recall}] if "--rerank" in command else []
                results += (one + (ranked if flag == "--retrieval" else [])) * count
        return {"results": results}

    @property
    def cells(self) -> list[str]:
        """Cells whose commands were started, in order."""
        return [child.cell for child in self.started]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def pretended(grid: Grid, scenes: Path, tmp_path: Path, machine: Any) -> Callable[..., Any]:
    """Runs the small grid, or cells of it, with commands that only pretend."""
    grid.corpus = str(scenes)

    def run(**how: Any) -> Any:
        cells = cells_of(grid, **{name: how.pop(name) for name in ("methods", "rates", "seeds") if name in how})
        options = {"console": Console(quiet=True), "command": "truepair bench", "jobs": 2, "start": machine}
        return bench.run_bench(grid, tmp_path / "work", cells, **(options | how))

    return run
