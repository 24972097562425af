"""A small noisy table and the shortest run over it that uses everything: two epochs and more of eight steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from truepair.config import AugmentConfig, LogConfig, NoiseConfig, RunConfig
from truepair.noise import corrupt
from truepair.pairs.table import PairTable

CLOCK = ("samples_per_s", "data_wait")  # all that may differ between two runs that are the same


@pytest.fixture(scope="session")
def noisy(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 256 training scenes with 40 % of their captions shuffled, and the truth as column is_noise."""
    table = PairTable.open(scenes / "train").derive(tmp_path_factory.mktemp("noisy") / "table")
    captions = [table.captions()[row] for row in range(len(table))]
    made = corrupt(captions, np.arange(len(table)), "shuffle", 0.4, 0)
    table.add_column("is_noise", made.is_noise, {})
    table.add_column("noisy", pa.array(made.captions), {})
    table.caption_column = "noisy"
    table.save()
    return table.path


@pytest.fixture
def run_config(noisy: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes configurations of a run in which p_noise and augmentation matter: 3 epochs of 8 steps of 32 pairs."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        config = RunConfig(
            data=str(noisy),
            out=str(tmp_path / name),
            method="gate",
            model="truepair-test",
            epochs=3,
            batch_size=32,
            lr=3e-3,
            workers=0,
            precision="fp32",
            device="cpu",
            checkpoint_minutes=1e9,
            augment=AugmentConfig(flip=0.5, jitter=0.2, grey=0.2),
            noise=NoiseConfig(warmup_epochs=1, average=0.3),
            log=LogConfig(every=1),
        )
        for key, value in changes.items():
            assert hasattr(config, key)
            setattr(config, key, value)
        return config

    return make


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(name="metrics")
def _metrics() -> Callable[[Path], list[dict[str, Any]]]:
    return metrics
