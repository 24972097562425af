"""The stages of a run: it writes captions for the pairs it doubts and goes on with them, whenever it is killed."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import assert_same_runs

from truepair.annotate.parts import Parts
from truepair.config import CompletionConfig, LogConfig, NoiseConfig, PairsConfig, RunConfig
from truepair.errors import UserError
from truepair.methods.base import Pairs
from truepair.models.captioner import ConceptCaptioner
from truepair.models.image_to_text import Decoding
from truepair.models.run_captioner import open_run_captioner
from truepair.noise import mixture
from truepair.pairs.table import PairTable, _opened
from truepair.train import loop, train
from truepair.train.logs import Pace

Make = Callable[..., RunConfig]
STEPS = 8  # an epoch


@pytest.fixture
def nlip(run_config: Make) -> Make:
    """Three epochs of nlip that write captions after the second for every pair."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        stage = CompletionConfig(start=2, mode="replace", min_p_noise=0.3, accept="all", decoding="greedy")
        return run_config(name, **({"method": "nlip", "completion": stage, "options": {"concepts": 50}} | changes))

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Pairs]:
    """What each step of the runs in a test was told of its pairs."""
    steps: list[Pairs] = []
    monkeypatch.setattr(loop, "Pairs", lambda *known, **more: steps.append(Pairs(*known, **more)) or steps[-1])
    return steps


def test_doubted_pairs_get_captions_and_are_learnt_with_them(nlip: Make, seen: list[Pairs]) -> None:
    config = nlip()
    train(config)
    table = PairTable.open(Path(config.out) / "completed")
    doubted = table.numbers("p_noise") >= 0.3
    written = table.captions("synthetic").counts > 0
    assert 0 < doubted.sum() < len(table) and written[doubted].all() and not written[~doubted].any()
    assert not any(step.synthetic.any() for step in seen[: 2 * STEPS] if step.synthetic is not None)
    for step in seen[2 * STEPS :]:
        assert torch.equal(step.synthetic, torch.from_numpy(doubted[step.rows.numpy()]))
    assert table.captions()[0] == PairTable.open(config.data).captions()[0]  # the raw ones are in force


def test_a_replaced_pair_keeps_the_loss_of_its_raw_caption(nlip: Make) -> None:
    config = nlip(noise=NoiseConfig(warmup_epochs=1))
    train(config)
    states = [np.load(folder / "ledger.npz") for folder in sorted(Path(config.out).glob("checkpoints/step-*"))]
    replaced = PairTable.open(Path(config.out) / "completed").captions("synthetic").counts > 0
    former, last = (state["losses"] for state in states[-2:])
    assert np.array_equal(former[replaced], last[replaced], equal_nan=True)
    assert not np.array_equal(former[~replaced], last[~replaced], equal_nan=True)


def test_a_kill_while_captions_are_written_or_after_changes_nothing(
    nlip: Make, metrics: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nlip("whole")
    train(whole)

    class Killed(Exception):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    parts = nlip("parts")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Parts, "finish", kill)  # all parts are written, the table is not
        train(parts)
    assert not (Path(parts.out) / "completed").exists()
    steps = 0

    def fail_later(*args: Any, **more: Any) -> Pairs:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        return Pairs(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "Pairs", fail_later)
        train(parts, resume=True)
    train(parts, resume=True)
    assert_same_runs(Path(whole.out), Path(parts.out), metrics)
    assert not list(Path(parts.out).glob("*judged*")) and not list(Path(parts.out).glob("*.parts"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_captions_are_written_stops_between_parts(
    nlip: Make, metrics: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("truepair.annotate.parts.CHUNK", 64)
    config, written, write = nlip("stopped"), list[int](), Parts.write

    def write_and_signal(self: Parts, rows: Any, *rest: Any) -> None:
        write(self, rows, *rest)
        written.append(int(rows[0]))
        if len(written) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Parts, "write", write_and_signal)
    result = train(config)
    assert result.interrupted and (result.step, result.steps) == (2 * STEPS, 3 * STEPS) and written == [0, 64]
    result = train(config, resume=True)
    assert not result.interrupted and result.step == 3 * STEPS and written == [0, 64, 128, 192]
    if number == signal.SIGTERM:
        train(nlip("whole"))
        assert_same_runs(Path(nlip("whole").out), Path(config.out), metrics)


def test_how_far_the_writing_is_gets_said(
    nlip: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("truepair.annotate.parts.CHUNK", 64)
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0.0,))
    train(nlip())
    said = [line for line in capsys.readouterr().err.splitlines() if "pairs/s" in line]
    assert [line.split(" pairs")[0] for line in said] == [f"{done} of 256" for done in (64, 128, 192, 256)]


def test_what_a_kill_left_behind_is_removed(nlip: Make) -> None:
    config = nlip(checkpoint_steps=20, log=LogConfig(every=1, keep_checkpoints=100))
    train(config)
    run = Path(config.out)
    before = {path.name for path in run.iterdir()}
    shutil.rmtree(run / "checkpoints" / "step-00000024")
    for rest in ("judged", ".judged.partial", ".judged.partial-7", "..judged.partial-7.partial-7", "completed.parts"):
        (run / rest / "columns").mkdir(parents=True)
        (run / rest / "columns" / "p_noise.parquet").touch()
    assert train(config, resume=True).step == 24
    assert {path.name for path in run.iterdir()} == before


def test_images_may_move_while_captions_are_written_and_after(
    nlip: Make, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(to: str) -> RunConfig:
        next(tmp_path.glob("corpus-*")).rename(tmp_path / to)
        _opened.cache_clear()  # or the files are read on through what was opened before
        stage = CompletionConfig(start=1, mode="replace", min_p_noise=0.0, accept="all", decoding="greedy")
        log = LogConfig(every=1, keep_checkpoints=100)
        return nlip(data=str(tmp_path / to / "train"), completion=stage, epochs=2, checkpoint_steps=12, log=log)

    shutil.copytree(scenes, tmp_path / "corpus-0")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(moved("corpus-1"))
    config = moved("corpus-2")
    assert train(config, resume=True).step == 16
    assert (PairTable.open(Path(config.out) / "completed").captions("synthetic").counts > 0).all()
    shutil.rmtree(Path(config.out) / "checkpoints" / "step-00000016")
    assert train(moved("corpus-3"), resume=True).step == 16
    assert not (Path(config.out) / "skipped.jsonl").exists()


def test_the_captions_tell_which_run_wrote_them_when_and_how(nlip: Make) -> None:
    config = nlip(precision="bf16", epochs=2, completion=CompletionConfig(start=1, decoding="greedy"))
    train(config)
    made = PairTable.open(Path(config.out) / "completed").made["synthetic"]
    assert (made["model"], made["step"], made["precision"]) == ("run", STEPS, "bf16")


def test_captions_may_be_written_right_after_the_first_fit(nlip: Make) -> None:
    stage = CompletionConfig(start=1, mode="replace", min_p_noise=0.3, accept="all", decoding="greedy")
    config = nlip(noise=NoiseConfig(warmup_epochs=1), completion=stage, epochs=2)
    train(config)
    completed = PairTable.open(Path(config.out) / "completed")
    assert 0 < (completed.captions("synthetic").counts > 0).sum() < len(completed)


def test_without_a_noise_model_no_captions_are_written_and_that_is_said(
    nlip: Make, seen: list[Pairs], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mixture, "LEAST_WEIGHT", 0.9)
    config = nlip()
    assert train(config).step == 3 * STEPS
    said = capsys.readouterr().err
    assert said.count("warning: no pair has p_noise >= 0.3 (a component weighs less than 0.9), so no captions") == 1
    assert "doubted pairs" not in said
    assert not PairTable.open(Path(config.out) / "completed").captions("synthetic").counts.any()
    assert not any(step.synthetic.any() for step in seen if step.synthetic is not None)


def test_stored_concepts_are_shown_in_place_of_found_ones(
    nlip: Make, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PairTable.open(noisy).derive(tmp_path / "named")
    ids = np.stack([np.arange(len(table)) % 4, np.full(len(table), -1)], axis=1).astype(np.int32)
    names = ["square", "circle", "star", "ring"]
    table.add_column("concepts", ids, {"names": names})
    shown: list[torch.Tensor] = []
    forward = ConceptCaptioner.forward

    def spy(self: ConceptCaptioner, tokens: torch.Tensor, captions: torch.Tensor, concepts: torch.Tensor) -> Any:
        shown.append(concepts)
        return forward(self, tokens, captions, concepts)

    monkeypatch.setattr(ConceptCaptioner, "forward", spy)
    config = nlip(data=str(table.path), options={"concept_column": "concepts"}, log=LogConfig(every=1))
    train(config)
    assert {tuple(row) for step in shown for row in step.tolist()} == {(i, -1) for i in range(4)}
    completed = PairTable.open(Path(config.out) / "completed")
    wrote = np.flatnonzero(completed.captions("synthetic").counts)
    assert len(wrote) and all(completed.captions("synthetic_concepts")[row] == [names[row % 4]] for row in wrote)
    other = open_run_captioner(config.out)
    image = other.preparer([Image.new("RGB", (9, 9))])
    assert other.at(table).write(image, np.array([6]), Decoding(n=1), 0).concepts == [["star"]]
    table.add_column("concepts", ids, {"names": names[::-1]})
    with pytest.raises(UserError, match="another list"):
        other.at(table)
    with pytest.raises(UserError, match="truepair concepts"):
        other.at(PairTable.open(noisy))


@pytest.mark.parametrize("column", ["is_noise", "nothing"])
def test_a_column_without_concepts_is_refused(nlip: Make, column: str) -> None:
    with pytest.raises(UserError, match=column):
        train(nlip(options={"concept_column": column}))


def test_a_run_whose_captions_are_gone_says_so(nlip: Make) -> None:
    config = nlip(checkpoint_steps=3, log=LogConfig(every=1, keep_checkpoints=100))
    train(config)
    shutil.rmtree(Path(config.out) / "checkpoints" / "step-00000024")
    shutil.rmtree(Path(config.out) / "completed")
    with pytest.raises(UserError, match="is gone"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "clip", "options": {}}, "trains no captioner"),
        ({"options": {"captioning": 0.0}}, "trains no captioner"),
        ({"completion": CompletionConfig(start=2, mode="both")}, "pairs.captions 2"),
        ({"completion": CompletionConfig(start=3)}, "completion.start 3"),
        ({"pairs": PairsConfig(synthetic="theirs")}, "give one of the two"),
        ({"noise": NoiseConfig(warmup_epochs=3)}, "comes before the noise model's first fit"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_training(nlip: Make, changes: dict[str, Any], reason: str) -> None:
    config = nlip(**changes)
    with pytest.raises(UserError, match=reason):
        train(config)
    assert not (Path(config.out) / "run.toml").exists()


def test_both_shows_a_raw_caption_beside_the_written_one(nlip: Make, seen: list[Pairs]) -> None:
    stage = CompletionConfig(start=1, mode="both", min_p_noise=0.0, accept="all", decoding="greedy")
    train(nlip(completion=stage, epochs=2, pairs=PairsConfig(captions=2)))
    for step in seen[STEPS:]:
        assert torch.equal(step.synthetic.view(-1, 2), torch.tensor([[False, True]]).expand(32, 2))
