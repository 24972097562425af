"""The losses of a pass over all pairs: each against the same negatives, as the model is, whatever the ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truepair.config import NoiseConfig, RunConfig
from truepair.evaluate.pairs import encode_pairs
from truepair.losses import distributed
from truepair.pairs.image import ImageError
from truepair.pairs.table import PairTable
from truepair.train import measuring, train
from truepair.train.measuring import pass_losses
from truepair.train.setup import Job, assemble

Make = Callable[..., RunConfig]


@pytest.fixture
def job(run_config: Make, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run that has not begun; a pair is compared with 40 others, in chunks of 100 rows."""
    monkeypatch.setattr(measuring, "NEGATIVES", 40)
    monkeypatch.setattr(measuring, "CHUNK", 100)
    return assemble(run_config(), torch.device("cpu"), resume=False)


def by_hand(job: Job) -> list[float]:
    """CLIP's loss of each pair in a batch with the 40 that are drawn, itself not twice."""
    found = encode_pairs(job.model, job.table, captions_per_row=1)
    image, text = found.images[found.image_of_row], found.texts[found.text_of_caption]
    logits = job.model.scale.item() * image @ text.T
    drawn = np.random.Generator(np.random.Philox(job.config.seed)).permutation(len(image))[:40]
    losses = []
    for i in range(len(image)):
        with_own = [i, *np.setdiff1d(drawn, [i]).tolist()]
        losses.append((logits[i, with_own].logsumexp(0) + logits[with_own, i].logsumexp(0)) / 2 - logits[i, i])
    return torch.stack(losses).tolist()


def test_a_pairs_loss_is_clips_against_the_pairs_drawn_once(job: Job) -> None:
    rows, losses = pass_losses(job)
    assert rows.tolist() == list(range(len(job.table))) == sorted(job.order.rows.tolist())
    np.testing.assert_allclose(losses, by_hand(job), rtol=1e-5, atol=1e-5)
    assert np.array_equal(pass_losses(job)[1], losses) and job.model.training


def test_ranks_share_the_rows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, losses = pass_losses(job)
    halves = []
    for number in range(2):
        monkeypatch.setattr(measuring, "rank", lambda number=number: number)
        monkeypatch.setattr(measuring, "world_size", lambda: 2)
        halves.append(pass_losses(job))
    assert distributed.world_size() == 1  # nothing was summed
    assert [half[0].tolist() for half in halves] == [rows[0::2].tolist(), rows[1::2].tolist()]
    np.testing.assert_allclose(np.concatenate([half[1] for half in halves])[halves_order(rows)], losses, rtol=1e-5)


def halves_order(rows: Any) -> Any:
    return np.argsort(np.concatenate([rows[0::2], rows[1::2]]), kind="stable")


def test_what_cannot_be_read_has_no_loss(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read = PairTable.image_bytes

    def torn(table: PairTable, row: int) -> bytes:
        if 100 <= row < 200 or row == 7:  # a whole chunk, and one
            raise ImageError("truncated", "torn")
        return read(table, row)

    monkeypatch.setattr(PairTable, "image_bytes", torn)
    rows, losses = pass_losses(job)
    assert rows.tolist() == [row for row in range(len(job.table)) if not 100 <= row < 200 and row != 7]
    assert np.isfinite(losses).all()


def test_a_run_can_judge_by_a_pass(run_config: Make, metrics: Callable[[Path], Any]) -> None:
    config = run_config(noise=NoiseConfig(warmup_epochs=2, loss_source="pass"))
    train(config)
    state = np.load(sorted(Path(config.out).glob("checkpoints/step-*"))[-1] / "ledger.npz")
    assert np.isfinite(state["losses"]).all()
    assert [line["epoch"] for line in metrics(Path(config.out)) if line["kind"] == "noise"] == [2, 3]
