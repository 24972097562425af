"""A checkpoint is whole or absent, and of this run or refused."""

import dataclasses
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import truepair.train.checkpoint as checkpoint
from truepair.config import LogConfig, NoiseConfig, OptimConfig, RunConfig
from truepair.errors import UserError
from truepair.methods.gate import Gate, GateOptions
from truepair.models.dual import create
from truepair.train.ledger import Ledger
from truepair.train.optim import adamw
from truepair.train.step import Trainee

MADE_BY = {"method": "gate", "lr": 1e-3, "pairs": {"crop_scale": (0.9, 1.0)}}


class State:
    """All that a checkpoint holds, after one optimiser step."""

    def __init__(self, seed: int = 0, rows: int = 100) -> None:
        torch.manual_seed(seed)
        self.trainee = Trainee(create("truepair-test"), Gate(GateOptions()))
        self.optimizer = adamw(self.trainee, OptimConfig(), 1e-3)
        for parameter in self.trainee.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.ledger = Ledger(rows, NoiseConfig())
        self.ledger.losses[:] = np.random.default_rng(seed).random(rows)

    def save(self, run: Path, step: int, keep_last: int = 2) -> checkpoint.Checkpoint:
        return checkpoint.save(run, step, self.trainee, self.optimizer, self.ledger, MADE_BY, keep_last)

    def load(self, run: Path, made_by: dict[str, Any] = MADE_BY) -> None:
        found = checkpoint.newest(run)
        assert found is not None
        checkpoint.load(found, self.trainee, self.optimizer, self.ledger, made_by)


@pytest.fixture(scope="module")
def state() -> State:
    return State()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def steps(run: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (run / "checkpoints").glob("step-*"))


def test_everything_comes_back(state: State, run: Path) -> None:
    assert checkpoint.newest(run) is None
    state.save(run, 12)
    other = State(seed=1)
    other.load(run)
    assert checkpoint.newest(run).step == 12  # type: ignore[union-attr]
    for (name, wanted), found in zip(
        state.trainee.state_dict().items(), other.trainee.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found), name
    moments = [list(s.optimizer.state_dict()["state"].values()) for s in (state, other)]
    for wanted, found in zip(*moments, strict=True):
        assert all(torch.equal(wanted[key], found[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert (state.ledger.losses == other.ledger.losses).all()


def test_open_clip_loads_it_alone(state: State, run: Path) -> None:
    folder = state.save(run, 1).folder
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    wanted = state.trainee.model.clip.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in clip.state_dict().items())


def test_only_the_last_ones_are_kept(state: State, run: Path) -> None:
    for step in (3, 6, 9, 100):
        state.save(run, step, keep_last=2)
    assert steps(run) == [9, 100]


def test_a_torn_one_is_no_checkpoint(state: State, run: Path) -> None:
    whole = state.save(run, 3)
    for name in (".partial-step-00000006", "step-00000009"):
        shutil.copytree(whole.folder, run / "checkpoints" / name)
    (run / "checkpoints" / "step-00000009" / "identity.json").unlink()
    assert checkpoint.newest(run) == whole


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "place", ["truepair.models.dual.safetensors.torch.save_file", "torch.save", "numpy.savez", "os.fsync"]
)
def test_a_full_disk_leaves_the_former_checkpoint_and_nothing_else(
    state: State, run: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    former = state.save(run, 3)
    monkeypatch.setattr(place, full_disk)
    with pytest.raises(UserError, match=r"step-00000006 cannot be written: .*No space left"):
        state.save(run, 6)
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert checkpoint.newest(run) == former


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_writers_own_errors_on_a_full_disk_are_known(
    state: State, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, path: save(value, "/dev/full"))
    with pytest.raises(UserError, match="step-00000006 cannot be written"):
        state.save(run, 6)


def test_one_written_by_another_run_is_refused_by_name(state: State, run: Path) -> None:
    state.save(run, 3)
    with pytest.raises(UserError, match=r"was written with lr = 0.001, this run has 0.1; resume with the former"):
        state.load(run, MADE_BY | {"lr": 0.1})


def test_a_setting_younger_than_the_checkpoint_has_its_default(state: State, run: Path) -> None:
    state.save(run, 3)  # knows one setting of [pairs], no other section and no options
    whole = dataclasses.asdict(RunConfig(method="gate", lr=1e-3))
    state.load(run, {name: whole[name] for name in checkpoint.IDENTITY} | {"options": {"power": 1.0}})
    state.load(run, MADE_BY | {"pairs": {}})
    for changes, named in (
        ({"pairs": {"captions": 2}}, r"pairs\.captions = 1, this run has 2"),
        ({"completion": {"start": 4}}, r"completion\.start = 0, this run has 4"),
        ({"options": {"power": 2.0}}, r"options\.power = 1\.0, this run has 2\.0"),
        ({"captions": "caption"}, "captions = None, this run has 'caption'"),
    ):
        with pytest.raises(UserError, match=f"was written with {named}"):
            state.load(run, MADE_BY | changes)


def test_a_setting_that_is_known_no_more_is_not_overlooked(state: State, run: Path) -> None:
    identity = state.save(run, 3).folder / "identity.json"
    identity.write_text(json.dumps(MADE_BY | {"pairs": {"shuffle": "twice"}}))
    with pytest.raises(UserError, match=r"with pairs\.shuffle = 'twice', this run has None"):
        state.load(run)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_an_identity_that_is_none_is_one_clear_line(state: State, run: Path, text: str) -> None:
    (state.save(run, 3).folder / "identity.json").write_text(text)
    with pytest.raises(UserError, match="does not fit this run: "):
        state.load(run)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "state.pt", "ledger.npz", "identity.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "junk"])
def test_a_damaged_file_is_one_clear_line(state: State, run: Path, file: str, damage: str) -> None:
    path = state.save(run, 3).folder / file
    found = checkpoint.newest(run)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "cut" else b"junk" * 100)
    assert found is not None
    with pytest.raises(UserError, match="step-00000003 does not fit this run: ") as caught:
        checkpoint.load(found, state.trainee, state.optimizer, state.ledger, MADE_BY)
    assert "\n" not in str(caught.value)


class _Attack:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("attacked",)


def test_code_in_a_checkpoint_is_not_run(
    state: State, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = state.save(run, 3).folder
    for hostile in (lambda path: torch.save({"method": _Attack()}, path), lambda path: path.write_bytes(evil())):
        hostile(folder / "state.pt")
        with pytest.raises(UserError, match="does not fit this run"):
            state.load(run)
    np.savez(folder / "ledger.npz", losses=np.array([_Attack()], dtype=object))
    assert not (tmp_path / "attacked").exists()


def evil() -> bytes:
    return pickle.dumps(_Attack(), protocol=2)


def test_one_of_another_table_or_model_is_refused(state: State, run: Path) -> None:
    state.save(run, 3)
    with pytest.raises(UserError, match="it knows 100 pairs, the table has 101"):
        State(rows=101).load(run)
    other = State()
    other.trainee.model.clip.visual.conv1 = torch.nn.Conv2d(3, 16, 8)
    with pytest.raises(UserError, match=r"does not fit this run: Missing key.* \"visual\.conv1\.bias\""):
        other.load(run)


def test_the_interval_in_minutes_saves_too(run_config: Callable[..., Any]) -> None:
    from truepair.train import train

    config = run_config(epochs=1, checkpoint_minutes=0.0, log=LogConfig(keep_checkpoints=100))
    train(config)
    assert steps(Path(config.out)) == list(range(1, 9))
