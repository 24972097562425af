"""A whole run of NEVER goes on to the same bytes, on any ranks and in any micro-batches; its account is kept."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_states import assert_same, state

from truepair.config import LogConfig, OptimConfig, PairsConfig, RunConfig, to_toml
from truepair.errors import UserError
from truepair.train import train

Make = Callable[..., RunConfig]
Lines = Callable[[Path], list[dict[str, Any]]]
NEVER = {
    "method": "never",
    "model": "truepair-fusion-test",
    "log": LogConfig(every=1, keep_checkpoints=100),
    "options": {"queue": 40, "vocabulary": "used", "selection": "global", "momentum": 0.9},
}
SCRIPT = """
import sys, torch
from truepair.config import from_toml
from truepair.train import train
torch.set_num_threads(1)
for file in sys.argv[1:]:
    train(from_toml(file))
"""


def test_a_run_goes_on_bit_identical_with_twin_queue_and_the_account_of_its_pairs(
    run_config: Make, metrics: Lines
) -> None:
    whole, torn = (Path(run_config(name).out) for name in ("whole", "torn"))
    train(run_config("whole", **NEVER, checkpoint_steps=10))
    shutil.copytree(whole, torn)
    for late in ("step-00000020", "step-00000024"):
        shutil.rmtree(torn / "checkpoints" / late)
    train(run_config("torn", **NEVER, checkpoint_steps=10), resume=True)
    end = state(whole)
    assert_same(end, state(torn), atol=0)
    assert metrics(whole) == metrics(torn)
    assert end["method.queue._extra_state"] == {"filled": 40, "next": 24 * 32 % 40}
    accounts = [pq.read_table(run / "columns/epoch-0003.parquet") for run in (whole, torn)]
    assert accounts[0].equals(accounts[1])
    assert {"confidence", "noisy", "times_noisy"} <= set(accounts[0].column_names)
    called = sum(line["noisy"] * 32 for line in metrics(whole) if line["kind"] == "train")
    assert accounts[0]["times_noisy"].to_numpy().sum() == pytest.approx(called)
    assert called > 0


def test_two_ranks_and_micro_batches_are_one_rank(run_config: Make, tmp_path: Path, metrics: Lines) -> None:
    """Split, hard negatives, gaps, queue and twin alike: weights to 1e-4, each figure of a step to a thousandth."""

    def config(name: str, parts: int) -> RunConfig:
        return run_config(name, **NEVER, epochs=2, lr=1e-3, optim=OptimConfig(accumulation=parts))

    local = run_config("local", **(NEVER | {"options": {"queue": 40, "mlm": 0.0, "alpha": 0.0}}), epochs=2)
    configs = [config("two", 1), config("two-cut", 2), local]
    files = [tmp_path / f"{Path(made.out).name}.toml" for made in configs]
    for made, file in zip(configs, files, strict=True):
        file.write_text(to_toml(made))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *map(str, files)], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[:3000]
    train(config("one", 1))
    one = Path(config("one", 1).out)
    assert sum(line["noisy"] for line in metrics(Path(local.out)) if line["kind"] == "train") > 0
    for made in configs[:2]:
        assert_same(state(one), state(Path(made.out)), atol=1e-4)
        lines = [[line for line in metrics(run) if line["kind"] == "train"] for run in (one, Path(made.out))]
        for wanted, found in zip(*lines, strict=True):
            for name in ("loss", "itc", "itm", "mlm", "noisy"):
                assert found[name] == pytest.approx(wanted[name], rel=1e-3), name


def test_several_captions_an_image_are_refused_before_anything_is_written(run_config: Make) -> None:
    config = run_config("several", **NEVER, pairs=PairsConfig(captions=2))
    with pytest.raises(UserError, match=r"never takes 1 caption an image at most: --pairs.captions 1"):
        train(config)
    assert not Path(config.out).exists()


def test_a_run_starts_with_the_fusion_encoder_of_another(run_config: Make) -> None:
    first = run_config("first", **NEVER, epochs=1)
    train(first)
    checkpoint = sorted(Path(first.out).glob("checkpoints/step-*"))[-1]
    further = {**NEVER, "model": f"local-dir:{checkpoint}", "options": {**NEVER["options"], "start": first.out}}
    train(run_config("second", **further, epochs=1, lr=1e-12))
    assert_same(
        {name: value for name, value in state(Path(first.out)).items() if name.startswith("method.fusion.")},
        {
            name: value
            for name, value in state(Path(run_config("second").out)).items()
            if name.startswith("method.fusion.")
        },
        atol=1e-6,
    )
    deeper = {**NEVER, "options": {**NEVER["options"], "start": first.out, "layers": 3}}
    with pytest.raises(UserError, match="of another shape"):
        train(run_config("third", **deeper, epochs=1))
