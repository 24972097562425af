"""What a cell found, gathered from what its commands printed and from its run's metrics."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truepair.bench.cells import Cell, Measured
from truepair.bench.grid import FIGURES
from truepair.bench.state import CellFiles, Progress, known

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


def result_of(cell: Cell, progress: Progress, files: CellFiles, sets: Measured, made: dict[str, Any]) -> dict[str, Any]:
    """What a cell found, gathered from what its commands printed and its run's metrics.jsonl.

    sets: the held-out sets, as its commands had them. made: when, where and by what. Whatever the commands left that
    is not as it should be ends in a LookupError, TypeError, ValueError or AttributeError.
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
    """The newest training line of a run at work that tells epoch and speed, None before the first.

    It is there to be looked at: lines that cannot be read are passed over.
    """
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if line.startswith('{"kind": "train"') and line.endswith("}\n"):
            try:
                step: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if known(step.get("epoch")) and known(step.get("samples_per_s")):
                return step
    return None


def detected(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The last known value of each figure of noise detection."""
    return {name: line[name] for line in lines for name in DETECTED if known(line.get(name))}


def mined(lines: list[dict[str, Any]]) -> dict[str, float]:
    """FFF's counts, summed over the second half of the steps in which it counts: by then mining is on."""
    counted = [line for line in lines if "new_true" in line]
    late = counted[len(counted) // 2 :]
    return {name: sum(line[name] for line in late) for name in MINED if late}
