"""What a bench keeps of each cell: settings, how far it is, what it found; whether that is still what is asked."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from truepair.bench.cells import Cell, Measured
from truepair.bench.grid import FIGURES
from truepair.errors import UserError

Status = Literal["done", "killed", "failed", "open"]
CLAIMS = {  # figures of `truepair eval` (CLIP_benchmark's names): ours, as a run's evaluation has them
    "zeroshot_classification": {"acc1": "top1", "acc5": "top5"},
    "zeroshot_retrieval": {
        "text_retrieval_recall@1": "image_to_text_r1",
        "image_retrieval_recall@1": "text_to_image_r1",
    },
    "zeroshot_retrieval_reranked": {"image_retrieval_recall@1": "reranked_text_to_image_r1"},
}
DETECTED = ("auroc", "average_precision", "ece", "confidence_auroc", "noisy_precision", "noisy_recall", "mean_p_noise")
TAIL = 8192  # bytes of metrics.jsonl in which its newest lines stand
MINED = ("new_positives", "new_true", "false_negatives")


@dataclass
class Progress:
    """A cell that is not done: what was spent on it, what its commands printed so far, its last words if it failed."""

    settings: dict[str, Any]
    seconds: float = 0.0
    attempts: int = 0
    printed: dict[str, Any] = field(default_factory=dict)  # by command
    status: Status = "killed"  # until something else is known: whoever kills the bench leaves it so
    said: str = ""


@dataclass(frozen=True)
class CellFiles:
    """Where a cell's things lie, all under WORK/cells. `result` alone makes a cell done."""

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.folder / self.name

    @property
    def result(self) -> Path:
        """What was found, once it is done."""
        return self.folder / f"{self.name}.json"

    @property
    def progress(self) -> Path:
        """What is known before."""
        return self.folder / f"{self.name}.progress.json"

    @property
    def recipe(self) -> Path:
        """The run's complete configuration."""
        return self.folder / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        """What the commands said, of all attempts."""
        return self.folder / f"{self.name}.log"

    @property
    def printed(self) -> Path:
        """Standard output of the command that is running."""
        return self.folder / f".{self.name}.out"

    def status(self) -> Status:
        """How far the cell is, by its files."""
        if self.result.is_file():
            return "done"
        found = self.load_progress()
        return found.status if found else "open"

    def load_result(self) -> dict[str, Any] | None:
        """What a finished cell found; None if it is not done."""
        if not self.result.is_file():
            return None
        found: dict[str, Any] = _json(self.result)
        return found

    def load_progress(self) -> Progress | None:
        """How far an unfinished cell is; None if it was never begun."""
        return Progress(**_json(self.progress)) if self.progress.is_file() else None

    def save(self, progress: Progress) -> None:
        """Keep how far the cell is."""
        write_json(self.progress, vars(progress))

    def checked(self, settings: dict[str, Any], default: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a cell that is done, None if it is not. Raises UserError if it was made by other settings.

        A cell that is not done is looked at likewise: it must not go on as another.
        """
        result, progress = self.load_result(), self.load_progress()
        made = result["settings"] if result else progress.settings if progress else settings
        if different := difference(made, settings, default):
            raise UserError(
                f"cell {self.name} in {self.folder.parent} was made with {different}; choose another --out, or remove "
                f"{self.folder / self.name}* to have it made anew"
            )
        return result

    def finish(self, result: dict[str, Any]) -> None:
        """The cell is done."""
        write_json(self.result, result)
        self.progress.unlink(missing_ok=True)
        self.printed.unlink(missing_ok=True)


def difference(made: Mapping[str, Any], asked: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """The first setting in which a cell is not what is asked for, "" if there is none.

    A setting that the cell's truepair did not have yet was at its default there.
    """
    before = {name: default[name] for name in asked if name in default} | dict(made)
    for name in dict.fromkeys([*asked, *before]):
        if before.get(name) != asked.get(name):
            return f"{name} = {before.get(name)!r}, where the grid now asks for {asked.get(name)!r}"
    return ""


def result_of(cell: Cell, progress: Progress, files: CellFiles, sets: Measured, made: dict[str, Any]) -> dict[str, Any]:
    """What a cell found, gathered from what its commands printed and its run's metrics.jsonl.

    sets: the held-out sets, as its commands had them. made: when, where and by what.
    """
    lines = metrics(files.run)
    train = progress.printed["train"]
    figures = evaluated(progress.printed.get("eval", {"results": []})["results"], sets)
    own = {name: value for name, value in train["figures"].items() if name in FIGURES}
    figures = {sets.run: own | figures.pop(sets.run, {})} | figures
    speeds = [line["samples_per_s"] for line in lines if line["kind"] == "train" and line.get("samples_per_s")]
    return {
        "cell": cell.name,
        "line": cell.line,
        "method": cell.row.method,
        "kind": cell.kind,
        "rate": cell.rate,
        "seed": cell.seed,
        "oracle": cell.oracle,
        "steps": train["steps"],
        "figures": figures,
        "detection": detected(lines),
        "mined": mined(lines),
        "cost": {
            "samples_per_s": statistics.median(speeds) if speeds else None,
            "seconds": round(progress.seconds, 1),
            "attempts": progress.attempts,
            "peak_memory": train["peak_memory"],
        },
        "made": made,
        "settings": progress.settings,
    }


def evaluated(printed: Sequence[Mapping[str, Any]], sets: Measured) -> dict[str, dict[str, float]]:
    """Figures of each held-out set from what `truepair eval` printed: each task's results come in the sets' order."""
    waiting = {task: list(sets.zeroshot if task == "zeroshot_classification" else sets.retrieval) for task in CLAIMS}
    found: dict[str, dict[str, float]] = {}
    for one in printed:
        claims = CLAIMS[one["task"]]
        figures = {own: one["metrics"][theirs] for theirs, own in claims.items()}
        found.setdefault(waiting[one["task"]].pop(0), {}).update(figures)
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, none if there is no such file yet."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def newest_step(run: Path) -> dict[str, Any] | None:
    """The newest training line of a run at work, None before the first."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return None
    whole = [line for line in lines if line.startswith('{"kind": "train"') and line.endswith("\n")]
    return json.loads(whole[-1]) if whole else None


def detected(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The last known value of each figure of noise detection."""
    return {name: line[name] for line in lines for name in DETECTED if known(line.get(name))}


def mined(lines: list[dict[str, Any]]) -> dict[str, float]:
    """FFF's counts, summed over the second half of the steps in which it counts: by then mining is on."""
    counted = [line for line in lines if "new_true" in line]
    late = counted[len(counted) // 2 :]
    return {name: sum(line[name] for line in late) for name in MINED if late}


def known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; what is no finite number becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(
        json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); remove it to have the cell made anew") from None
