"""The loop as a whole: what it writes, and what it says when something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

import truepair.train.monitor as monitor
from truepair.config import EvalConfig, LogConfig, OptimConfig, PairsConfig, RunConfig, from_toml
from truepair.errors import UserError
from truepair.methods.base import Loss, Method
from truepair.methods.gate import Gate
from truepair.pairs.subset import write_subset
from truepair.pairs.table import PairTable
from truepair.report import run_report
from truepair.train import train

Make = Callable[..., RunConfig]
Metrics = Callable[[Path], list[dict[str, Any]]]


def test_a_run_learns_and_leaves_what_the_contract_promises(run_config: Make, metrics: Metrics, scenes: Path) -> None:
    config = run_config(
        epochs=4,
        eval=EvalConfig(zeroshot=str(scenes / "zeroshot"), retrieval=str(scenes / "test"), every=2),
        data=str(scenes / "train"),
    )
    result = train(config)
    run = Path(config.out)
    assert result.step == result.steps == 32 and result.samples_per_s > 0
    assert 50e6 < result.peak_memory < 100e9
    assert from_toml(run / "run.toml") == config
    lines = metrics(run)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 32 and np.mean(losses[-8:]) < np.mean(losses[:8])
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [16, 32]
    assert result.figures.items() <= evaluations[-1].items() and {"top1", "image_to_text_r1"} <= result.figures.keys()
    assert [f.name for f in sorted((run / "columns").iterdir())] == [f"epoch-000{e}.parquet" for e in (1, 2, 3, 4)]
    assert [f.name for f in sorted((run / "checkpoints").iterdir())] == ["step-00000016", "step-00000032"]


def test_the_truth_column_judges_the_noise_model(run_config: Make, metrics: Metrics) -> None:
    config = run_config()
    train(config)
    truth = PairTable.open(config.data).numbers("is_noise")
    for epoch, line in enumerate((line for line in metrics(Path(config.out)) if line["kind"] == "noise"), 1):
        column = pq.read_table(Path(config.out) / "columns" / f"epoch-{epoch:04d}.parquet")
        rows, p_noise = column.column("row").to_numpy(), column.column("p_noise").to_numpy()
        assert line["auroc"] == pytest.approx(roc_auc_score(truth[rows], p_noise))
        assert line["mean_p_noise"] == pytest.approx(p_noise.mean(), rel=1e-5)


def test_p_noise_weighs_pairs_from_the_first_fit_on(run_config: Make, metrics: Metrics) -> None:
    config = run_config()
    train(config)
    weights = [line["weight"] for line in metrics(Path(config.out)) if line["kind"] == "train"]
    assert weights[:8] == [1.0] * 8 and max(weights[8:]) < 1


def test_only_the_rows_to_keep_are_trained_on(run_config: Make, tmp_path: Path) -> None:
    config = run_config(keep=str(tmp_path / "keep.parquet"), epochs=1, log=LogConfig(every=100))
    kept = np.arange(1, 256, 3)
    write_subset(PairTable.open(config.data), kept, Path(config.keep))
    assert train(config).steps == len(kept) // 32
    column = pq.read_table(Path(config.out) / "columns" / "epoch-0001.parquet")
    assert (column.column("row").to_numpy() == kept).all()
    with np.load(Path(config.out) / "checkpoints" / "step-00000002" / "ledger.npz") as ledger:
        assert set(np.flatnonzero(np.isfinite(ledger["losses"]))) <= set(kept)


def test_writing_seldom_writes_the_same(run_config: Make, metrics: Metrics) -> None:
    often, seldom = run_config("often"), run_config("seldom", log=LogConfig(every=1000))
    train(often)
    train(seldom)
    assert metrics(Path(often.out)) == metrics(Path(seldom.out))


def test_micro_batches_change_rounding_only(run_config: Make, metrics: Metrics) -> None:
    whole, cut = run_config("whole", epochs=1), run_config("cut", epochs=1, optim=OptimConfig(accumulation=3))
    train(whole)
    train(cut)
    losses = [[line["loss"] for line in metrics(Path(c.out)) if line["kind"] == "train"] for c in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    run_config: Make, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    poisoned, seen = [3, 200], []
    plain = Gate.loss

    def poison(self: Method, *args: Any) -> Loss:
        loss, pairs = plain(self, *args), args[-1]
        if pairs.epoch < 1:
            return loss
        if place == "loss":
            bad = torch.isin(pairs.rows, torch.tensor(poisoned))
            seen.extend(pairs.rows[bad].tolist())
            return Loss(loss.total * torch.where(bad.any(), torch.nan, 1.0), loss.per_pair.masked_fill(bad, torch.nan))
        loss.total.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr(Gate, "loss", poison)
    config = run_config(checkpoint_steps=1, log=LogConfig(every=1, keep_checkpoints=100))
    with pytest.raises(UserError, match="stopped being finite") as caught:
        train(config)
    if place == "loss":
        assert str(seen) in str(caught.value)
    saved = sorted(Path(config.out).glob("checkpoints/step-*"))
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert saved and int(saved[-1].name[5:]) == last["step"] - 1 >= 8
    assert last["grad_norm"] is None and (last["loss"] is None) == (place == "loss")


@pytest.mark.parametrize(("warmup", "warned"), [(1, False), (2, True), (3, True)])
def test_a_noise_model_that_comes_too_late_to_act_is_said(
    run_config: Make, capsys: pytest.CaptureFixture[str], warmup: int, warned: bool
) -> None:
    config = run_config(epochs=2)
    config.noise.warmup_epochs = warmup
    train(config)
    said = " ".join(capsys.readouterr().err.split())
    assert (f"first fitted after epoch {warmup} (--noise.warmup-epochs), and this run ends after 2" in said) is warned
    page = run_report([Path(config.out)], Path(config.out) / "report.html").read_text()
    assert ("No noise model was fitted" in page) is (warmup == 3)


@pytest.mark.parametrize(("method", "times"), [("clip", 1), ("fff", 0)])
def test_repeated_captions_are_said_once_and_not_to_a_method_that_knows_them(
    run_config: Make, capsys: pytest.CaptureFixture[str], method: str, times: int
) -> None:
    config = run_config(epochs=2, method=method)
    table = PairTable.open(config.data).derive(Path(config.out).parent / "same")
    table.add_column("same", [["a drawing"]] * 256, {})
    table.caption_column = "same"
    table.save()
    config.data = str(table.path)
    train(config)
    said = capsys.readouterr().err
    assert said.count("31 of 32 captions of a batch are repeated") == times == said.count("warning:")


def test_an_image_that_went_bad_is_replaced_and_named_once_however_often_resumed(
    run_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = PairTable.image_bytes
    monkeypatch.setattr(PairTable, "image_bytes", lambda self, row: b"junk" if row == 77 else plain(self, row))
    config = run_config(epochs=2, checkpoint_steps=3, log=LogConfig(every=1, keep_checkpoints=100))
    train(config)
    run = Path(config.out)
    before = (run / "skipped.jsonl").read_text()
    skips = [json.loads(line) for line in before.splitlines()]
    assert {(skip["row"], skip["reason"]) for skip in skips} == {(77, "unreadable image")} and len(skips) == 2
    assert "unreadable image (2)" in capsys.readouterr().err
    for checkpoint in sorted(run.glob("checkpoints/step-*"))[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    train(config, resume=True)
    assert (run / "skipped.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"out": ""}, "--out RUN"),
        ({"data": "nowhere"}, "nowhere is not a pair table"),
        ({"method": "magic"}, "no method 'magic'; choose one of clip"),
        ({"model": "ViT-Z"}, "no model of the name 'ViT-Z'"),
        ({"options": {"strength": 1}}, "gate: unknown entry 'strength'; known are power"),
        ({"batch_size": 257}, "256 pairs do not fill one batch of 257"),
        ({"device": "quantum"}, "device 'quantum' cannot be used"),
        ({"optim": OptimConfig(accumulation=33)}, "--optim.accumulation 33"),
        ({"optim": OptimConfig(accumulation=0)}, "--optim.accumulation 0"),
        ({"pairs": PairsConfig(caption_column="haiku")}, "no column 'haiku'"),
        ({"pairs": PairsConfig(max_p_noise=0.5)}, "no column 'p_noise'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_leaves_no_run(
    run_config: Make, changes: dict[str, Any], complaint: str
) -> None:
    config = run_config(**changes)
    with pytest.raises(UserError, match=complaint) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert not config.out or not (Path(config.out) / "run.toml").exists()


def test_evaluation_may_be_off(run_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "zero_shot", None)
    monkeypatch.setattr(monitor, "retrieval", None)
    assert train(run_config(epochs=1)).figures == {}


def test_what_an_evaluation_breaks_off_is_saved_and_made_up_for_on_resuming(
    run_config: Make, metrics: Metrics, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(epochs=1, eval=EvalConfig(retrieval=str(scenes / "test")))
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(monitor, "retrieval", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        train(config)
    assert [f.name for f in (Path(config.out) / "checkpoints").iterdir()] == ["step-00000008"]
    result = train(config, resume=True)
    assert "text_to_image_r1" in result.figures
    again = train(config, resume=True)
    assert again.figures == result.figures
    assert [line["step"] for line in metrics(Path(config.out)) if line["kind"] == "eval"] == [8]


def test_a_run_goes_on_only_with_the_pairs_it_began_with(run_config: Make, scenes: Path, noisy: Path) -> None:
    config = run_config(epochs=1)
    train(config)
    config.data = str(scenes / "train")  # the same images, other captions
    with pytest.raises(UserError, match="captions"):
        train(config, resume=True)
    assert from_toml(Path(config.out) / "run.toml").data == str(noisy)


def test_pairs_without_a_caption_are_left_out_and_counted(
    run_config: Make, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = PairTable.open(scenes / "train").derive(tmp_path / "partial")
    captions = [["a caption"] if row % 4 else [] for row in range(len(table))]
    table.add_column("synthetic", pa.array(captions, pa.list_(pa.string())), {})
    config = run_config(epochs=1, data=str(table.path), pairs=PairsConfig(caption_column="synthetic"))
    assert train(config).steps == 192 // 32
    assert "left out 64 pairs that have no caption" in capsys.readouterr().err
