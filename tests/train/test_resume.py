"""A run that is killed, or told to stop, ends as the run that never was."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from truepair.config import RunConfig
from truepair.errors import UserError
from truepair.train import Result, train

# Every run starts as a fork of one process that has imported the package: a kill costs no second import.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["truepair.train"])


def run(config: RunConfig, outcome: Any = None, own_group: bool = False) -> None:
    """What a killable process does."""
    torch.set_num_threads(1)
    if own_group:
        os.setpgrp()
    result = train(config, resume=True)
    if outcome is not None:
        outcome.put(result)


def start(config: RunConfig, *args: Any) -> Any:
    process = FORKS.Process(target=run, args=(config, *args))
    process.start()
    return process


def wait_for(process: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while process.is_alive() and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count('"kind": "train"') if file.exists() else 0


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def assert_same_runs(first: Path, second: Path, metrics: Callable[[Path], Any]) -> None:
    """Bit for bit: weights, optimiser, ledger, metrics, columns."""
    assert newest(first).name == newest(second).name
    weights = [load_file(newest(folder) / "open_clip_model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("state.pt", "ledger.npz"):
        states = [flat(newest(folder) / name) for folder in (first, second)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert metrics(first) == metrics(second)
    columns = [sorted((folder / "columns").glob("*")) for folder in (first, second)]
    assert [file.name for file in columns[0]] == [file.name for file in columns[1]] != []
    for files in zip(*columns, strict=True):
        tables = [pq.read_table(file) for file in files]
        assert tables[0].equals(tables[1])


def flat(file: Path) -> dict[Any, torch.Tensor]:
    """Every tensor of an optimiser's or ledger's file by its place."""
    if file.suffix == ".npz":
        import numpy as np

        with np.load(file) as saved:
            return {name: torch.from_numpy(saved[name].view("u1")) for name in ("losses", "p_noise")}
    state = torch.load(file, weights_only=True)["optimizer"]["state"]
    return {(i, name): value for i, entry in state.items() for name, value in entry.items()}


@pytest.fixture
def reference(run_config: Callable[..., RunConfig], metrics: Callable[[Path], Any]) -> Path:
    """An uninterrupted run, whose noise model told noisy from clean in every epoch."""
    train(run_config("reference"))
    folder = Path(run_config("reference").out)
    fits = [line for line in metrics(folder) if line["kind"] == "noise"]
    assert len(fits) == 3 and all(not fit["mixture"]["degenerate"] and fit["mean_p_noise"] > 0.05 for fit in fits)
    return folder


def test_a_run_killed_at_random_moments_ends_bit_identical(
    run_config: Callable[..., RunConfig], reference: Path, metrics: Callable[[Path], Any]
) -> None:
    config = run_config("killed", checkpoint_steps=3)
    folder, chance = Path(config.out), random.Random(0)
    kills = 0
    for step in (1, 4, 8, 13, 17, 21):
        process = start(config)
        wait_for(process, lambda step=step: steps_done(folder) >= step)
        time.sleep(chance.uniform(0, 0.04))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    process = start(config)
    process.join()
    assert process.exitcode == 0 and kills >= 5
    assert_same_runs(reference, folder, metrics)


def test_a_kill_while_saving_leaves_the_former_checkpoint(
    run_config: Callable[..., RunConfig], reference: Path, metrics: Callable[[Path], Any]
) -> None:
    config = run_config("killed", checkpoint_steps=5)
    folder = Path(config.out)
    partial = folder / "checkpoints" / ".partial-step-00000010"
    process = start(config)
    wait_for(process, partial.exists)
    process.kill()
    process.join()
    assert partial.exists() and newest(folder).name == "step-00000005"
    column = folder / "columns" / ".epoch-0001.parquet.partial-1"  # what a kill while writing a column leaves
    column.write_bytes(b"PAR1")
    train(config, resume=True)
    assert not partial.exists() and not column.exists()
    assert_same_runs(reference, folder, metrics)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_saves_and_says_so(
    run_config: Callable[..., RunConfig], reference: Path, metrics: Callable[[Path], Any], number: int
) -> None:
    config = run_config("stopped", workers=1)
    folder, outcome = Path(config.out), FORKS.SimpleQueue()
    process = start(config, outcome, True)
    wait_for(process, lambda: steps_done(folder) >= 6)
    os.killpg(process.pid, number)  # as a cluster's scheduler or a terminal does: the decoding worker gets it too
    process.join()
    assert process.exitcode == 0
    result: Result = outcome.get()
    assert result.interrupted and 6 <= result.step < result.steps == 24
    assert newest(folder).name == f"step-{result.step:08d}"
    finished = train(config, resume=True)
    assert not finished.interrupted and finished.step == 24
    assert_same_runs(reference, folder, metrics)


def test_a_run_that_is_being_assembled_ends_at_a_signal_as_any_process_does(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Any] = []

    def assemble(*_: Any) -> None:
        handlers.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
        raise UserError("that is enough")

    monkeypatch.setattr("truepair.train.loop.assemble", assemble)
    with pytest.raises(UserError, match="enough"):
        train(run_config("early"))
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_resuming_a_finished_run_changes_nothing(reference: Path, run_config: Callable[..., RunConfig]) -> None:
    files = [f for f in reference.rglob("*") if f.is_file() and f.suffix != ".toml"]
    before = {file: file.read_bytes() for file in files}
    result = train(run_config("reference"), resume=True)
    assert result.step == result.steps == 24 and not result.interrupted
    assert {file: file.read_bytes() for file in files} == before


def test_lines_of_steps_to_be_done_again_and_a_torn_one_are_cut(
    reference: Path, run_config: Callable[..., RunConfig], metrics: Callable[[Path], Any]
) -> None:
    whole = metrics(reference)
    with (reference / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 25, "loss": 1.0}\n{"kind": "train", "st')
    train(run_config("reference"), resume=True)
    assert metrics(reference) == whole


def test_a_new_run_does_not_write_into_anothers_directory(
    reference: Path, run_config: Callable[..., RunConfig]
) -> None:
    before = (reference / "run.toml").read_bytes()
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        train(run_config("reference", lr=1e-3))
    assert (reference / "run.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"method": "clip"}, "method"), ({"model": "truepair-tiny"}, "model"), ({"lr": 1.0}, "lr"), ({"seed": 5}, "seed")],
)
def test_a_checkpoint_of_another_run_is_refused_and_its_run_left_alone(
    reference: Path, run_config: Callable[..., RunConfig], changes: dict[str, Any], named: str
) -> None:
    before = (reference / "run.toml").read_bytes()
    with pytest.raises(UserError, match=f"was written with {named} = .*, this run has"):
        train(run_config("reference", **changes), resume=True)
    assert (reference / "run.toml").read_bytes() == before
