"""The stages of a run: it writes captions for the pairs it doubts and goes on with them, whenever it is killed."""

import shutil
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
from truepair.models.run_captioner import open_run_captioner
from truepair.noise.scores import neg_clip_loss
from truepair.pairs.table import PairTable
from truepair.train import loop, train
from truepair.train.measuring import pass_losses
from truepair.train.setup import assemble

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
    assert other.at(table).concepts_of(other.preparer([Image.new("RGB", (9, 9))]), np.array([6])) == [["star"]]
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


def test_the_losses_of_a_pass_are_clips_against_the_same_pairs_for_all(
    run_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truepair.train.measuring.NEGATIVES", 40)
    job = assemble(run_config(), torch.device("cpu"), resume=False)
    rows, losses = pass_losses(job)
    assert rows.tolist() == sorted(job.order.rows.tolist())
    again = pass_losses(job)[1]
    assert np.array_equal(losses, again) and job.model.training
    from truepair.evaluate.pairs import encode_pairs

    found = encode_pairs(job.model, job.table, captions_per_row=1)
    image, text = found.images[found.image_of_row], found.texts[found.text_of_caption]
    drawn = np.random.Generator(np.random.Philox(job.config.seed)).permutation(len(rows))[:40]
    scale = float(job.model.scale.detach())
    wanted = -scale * neg_clip_loss(image, text, scale, sample=torch.from_numpy(np.sort(drawn)))
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-5, atol=1e-5)
    i, others = 7, torch.from_numpy(np.setdiff1d(drawn, [7]))
    logits = scale * image @ text.T
    by_hand = (
        -logits[i, i]
        + (
            torch.cat([logits[i, i : i + 1], logits[i, others]]).logsumexp(0)
            + torch.cat([logits[i, i : i + 1], logits[others, i]]).logsumexp(0)
        )
        / 2
    )
    assert losses[i] == pytest.approx(by_hand.item(), abs=1e-5)


def test_a_run_can_judge_by_a_pass(run_config: Make, metrics: Callable[[Path], Any]) -> None:
    config = run_config(noise=NoiseConfig(warmup_epochs=2, loss_source="pass"))
    train(config)
    state = np.load(sorted(Path(config.out).glob("checkpoints/step-*"))[-1] / "ledger.npz")
    assert np.isfinite(state["losses"]).all()  # also of the rows that no batch of an epoch has room for
    assert [line["epoch"] for line in metrics(Path(config.out)) if line["kind"] == "noise"] == [2, 3]
