"""Two ranks under torchrun train the model that one process trains, up to rounding."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from truepair.config import CompletionConfig, LogConfig, OptimConfig, RunConfig, to_toml
from truepair.pairs.table import PairTable
from truepair.train import train

SCRIPT = """
import sys, torch
from truepair.annotate import parts
from truepair.config import from_toml
from truepair.train import train
torch.set_num_threads(1)
parts.CHUNK = 50  # rows written together: more such than ranks
for file in sys.argv[1:]:
    train(from_toml(file))
"""
Make = Callable[..., RunConfig]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted(run.glob("checkpoints/step-*"))[-1] / "open_clip_model.safetensors")


def train_with_two_ranks(folder: Path, *configs: RunConfig) -> None:
    """The runs one after the other, under torchrun; its files go into `folder`."""
    files = []
    for config in configs:
        files.append(folder / f"{Path(config.out).name}.toml")
        files[-1].write_text(to_toml(config))
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *files]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def assert_close(first: Path, second: Path, metrics: Callable[[Path], list[dict[str, Any]]]) -> None:
    one, two = weights(first), weights(second)
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-4) for name in one)
    lines = [[line for line in metrics(run) if line["kind"] == "train"] for run in (first, second)]
    assert len(lines[0]) == len(lines[1])
    for wanted, found in zip(*lines, strict=True):
        for name in ("step", "epoch", "lr", "loss", "scale", "weight", "grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-3), (wanted["step"], name)
    for files in zip(*(sorted((run / "columns").iterdir()) for run in (first, second)), strict=True):
        one_table, two_table = (pq.read_table(file).to_pydict() for file in files)
        assert one_table["row"] == two_table["row"]
        assert one_table["loss"] == pytest.approx(two_table["loss"], abs=2e-3, nan_ok=True)


@pytest.fixture
def two_ranks(run_config: Make, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Runs of two ranks with a checkpoint every 5 of 16 steps: at once, and in three micro-batches."""
    log = LogConfig(every=1, keep_checkpoints=100)
    plain = run_config("two", epochs=2, checkpoint_steps=5, log=log, lr=1e-3)
    cut = run_config("two-cut", epochs=2, log=log, lr=1e-3, optim=OptimConfig(accumulation=3))
    train_with_two_ranks(tmp_path, plain, cut)
    yield Path(plain.out), Path(cut.out)


def test_two_ranks_train_what_one_does_and_one_goes_on_from_two(
    two_ranks: tuple[Path, Path], run_config: Make, metrics: Callable[[Path], list[dict[str, Any]]]
) -> None:
    plain, cut = two_ranks
    log = LogConfig(every=1, keep_checkpoints=100)
    config = run_config("one", epochs=2, checkpoint_steps=5, log=log, lr=1e-3)
    train(config)
    one = Path(config.out)
    assert_close(one, plain, metrics)
    assert_close(one, cut, metrics)
    for left_over in ("step-00000010", "step-00000015", "step-00000016"):
        shutil.rmtree(plain / "checkpoints" / left_over)
    result = train(run_config("two", epochs=2, checkpoint_steps=5, log=log, lr=1e-3), resume=True)
    assert result.step == 16 and (plain / "checkpoints" / "step-00000010").exists()
    assert_close(one, plain, metrics)


def test_two_ranks_write_the_captions_that_one_does_and_learn_with_them(
    run_config: Make, tmp_path: Path, metrics: Callable[[Path], list[dict[str, Any]]]
) -> None:
    stage = CompletionConfig(start=1, mode="sample", min_p_noise=0.3, accept="all", decoding="nucleus")
    common = {"method": "nlip", "options": {"concepts": 50}, "completion": stage, "epochs": 2, "lr": 1e-3}
    one = run_config("one", **common)
    two = run_config("two", **common, optim=OptimConfig(accumulation=2))
    train(one)
    train_with_two_ranks(tmp_path, two)
    tables = [PairTable.open(Path(config.out) / "completed") for config in (one, two)]
    assert tables[0].numbers("p_noise") == pytest.approx(tables[1].numbers("p_noise"), abs=2e-3)
    captions = [[table.captions("synthetic")[row] for row in range(len(table))] for table in tables]
    assert captions[0] == captions[1] and len({text for texts in captions[0] for text in texts}) > 20
    lines = [[line for line in metrics(Path(config.out)) if line["kind"] == "train"] for config in (one, two)]
    for wanted, found in zip(*lines, strict=True):
        for name in ("step", "loss", "nll", "w", "synthetic", "grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-3), (wanted["step"], name)
    assert 0 < lines[0][-1]["synthetic"] < 1
