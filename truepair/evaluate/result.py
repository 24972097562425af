"""The one JSON form of all evaluation results: the fields of CLIP_benchmark, so that its tables read ours too."""

from collections.abc import Mapping
from typing import Any


def benchmark_json(
    dataset: str, model: str, pretrained: str, task: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """One result as `clip_benchmark eval` writes it; metrics are fractions, not percent."""
    return {
        "dataset": dataset,
        "model": model,
        "pretrained": pretrained,
        "task": task,
        "metrics": dict(metrics),
        "language": "en",
    }
