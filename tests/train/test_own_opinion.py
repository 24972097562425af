"""A method's own opinion of the pairs is kept row by row, written every epoch, and the same however the run went."""

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from truepair.config import NoiseConfig, RunConfig
from truepair.methods import METHODS
from truepair.methods.base import Loss
from truepair.methods.gate import Gate
from truepair.pairs.table import PairTable
from truepair.train import train
from truepair.train.ledger import Ledger
from truepair.train.monitor import judged

Make = Callable[..., RunConfig]
Metrics = Callable[[Path], list[dict[str, Any]]]
OPINION = ["confidence", "noisy", "times_noisy"]


class Opinionated(Gate):
    """Gate, which believes a pair as far as its loss is small."""

    def loss(self, *args: Any) -> Loss:
        loss = super().loss(*args)
        confidence = torch.exp(-loss.per_pair)
        return Loss(loss.total, loss.per_pair, loss.logs, confidence, confidence < 0.032)


@pytest.fixture
def opinionated(run_config: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes runs of 3 epochs of 8 steps whose noise model is first fitted after the second."""
    monkeypatch.setitem(METHODS, "opinionated", Opinionated)
    noise = NoiseConfig(warmup_epochs=2)
    return lambda name="run", **changes: run_config(name, **{"method": "opinionated", "noise": noise} | changes)


def columns(run: Path, epoch: int) -> dict[str, np.ndarray]:
    table = pq.read_table(run / "columns" / f"epoch-{epoch:04d}.parquet")
    return {name: table.column(name).to_numpy() for name in table.column_names}


# of a row: whether it is in the step, the method's confidence, whether it calls it noisy, whether a caption is raw
said_of_a_row = st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 1.0]), st.booleans(), st.booleans())


@settings(max_examples=50)
@given(st.lists(st.lists(said_of_a_row, min_size=4, max_size=4), max_size=6))
def test_the_latest_word_counts_and_calls_add_up_over_steps_with_a_raw_caption(steps: list[Any]) -> None:
    ledger, latest, times = Ledger(5, NoiseConfig()), {}, dict.fromkeys(range(5), 0)
    for i, said in enumerate(steps):
        present, confidence, noisy, raw = (torch.tensor(values) for values in zip(*said, strict=True))
        confidence = torch.where(present, confidence, torch.nan)  # as of a row that nothing is said of
        ledger.record(torch.arange(4), torch.ones(4), raw, confidence, noisy)
        for row, (here, c, bad, of_raw) in enumerate(said):
            if here and of_raw:
                latest[row], times[row] = (c, bad), times[row] + bad
        if i % 2:
            ledger.flush()
    ledger.flush()
    if not steps:
        assert ledger.opinion is None
        return
    assert ledger.opinion is not None
    for row in range(5):
        c, bad = latest.get(row, (np.nan, False))
        assert ledger.opinion.confidence[row] == pytest.approx(c, nan_ok=True)
        assert ledger.opinion.noisy[row] == bad and ledger.opinion.times_noisy[row] == times[row]


def test_a_row_that_stands_in_for_unreadable_ones_is_counted_each_time() -> None:
    ledger = Ledger(3, NoiseConfig())
    ledger.record(torch.tensor([2, 2, 0]), torch.ones(3), None, torch.zeros(3), torch.tensor([True, True, False]))
    ledger.flush()
    assert ledger.opinion is not None and ledger.opinion.times_noisy.tolist() == [0, 0, 2]


def test_confidence_alone_calls_nothing_noisy_and_calls_alone_are_refused() -> None:
    ledger = Ledger(3, NoiseConfig())
    ledger.record(torch.tensor([1]), torch.ones(1), None, torch.tensor([0.25], dtype=torch.bfloat16))
    ledger.flush()
    assert ledger.opinion is not None and ledger.opinion.confidence.tolist()[1] == 0.25
    assert not ledger.opinion.noisy.any() and not ledger.opinion.times_noisy.any()
    with pytest.raises(ValueError, match="must say how far it believes"):
        ledger.record(torch.tensor([1]), torch.ones(1), None, None, torch.tensor([True]))


def test_it_is_kept_where_losses_are_measured_in_a_pass() -> None:
    ledger = Ledger(3, NoiseConfig(loss_source="pass"))
    ledger.record(torch.tensor([1]), torch.ones(1), None, torch.tensor([0.25]), torch.tensor([True]))
    ledger.flush()
    assert np.isnan(ledger.losses).all()
    assert ledger.opinion is not None and ledger.opinion.times_noisy.tolist() == [0, 1, 0]


def test_it_is_saved_and_comes_back_and_a_ledger_saved_without_one_has_none(tmp_path: Path) -> None:
    spoken, silent = Ledger(3, NoiseConfig()), Ledger(3, NoiseConfig())
    for ledger, said in ((spoken, (torch.tensor([0.5, 0.1]), torch.tensor([False, True]))), (silent, ())):
        ledger.record(torch.tensor([0, 2]), torch.ones(2), None, *said)
        ledger.flush()
        ledger.save(tmp_path / "ledger.npz")
        loaded = Ledger(3, NoiseConfig())
        loaded.load(tmp_path / "ledger.npz")
        assert (loaded.opinion is None) == (ledger.opinion is None)
        for name in OPINION if ledger.opinion else []:
            wanted, found = getattr(ledger.opinion, name), getattr(loaded.opinion, name)
            assert np.array_equal(wanted, found, equal_nan=name == "confidence") and wanted.dtype == found.dtype
    with np.load(tmp_path / "ledger.npz") as saved:  # as checkpoints were before methods had opinions
        assert set(saved) == {"losses", "p_noise", "mixture"}


@pytest.mark.parametrize("name", OPINION)
def test_a_saved_opinion_of_other_pairs_or_kind_is_refused(tmp_path: Path, name: str) -> None:
    ledger = Ledger(3, NoiseConfig())
    ledger.record(torch.tensor([0]), torch.ones(1), None, torch.ones(1))
    ledger.flush()
    ledger.save(tmp_path / "sound.npz")
    sound = dict(np.load(tmp_path / "sound.npz"))
    for damage, complaint in ((sound[name][:2], "it knows 2 pairs"), (sound[name].astype(np.float64), "are float64")):
        np.savez(tmp_path / "ledger.npz", **sound | {name: damage})
        fresh = Ledger(3, NoiseConfig())
        with pytest.raises(ValueError, match=complaint):
            fresh.load(tmp_path / "ledger.npz")
        assert fresh.opinion is None


def test_it_is_written_every_epoch_and_judged_by_the_truth(
    opinionated: Make, metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    config = opinionated()
    train(config)
    run, truth = Path(config.out), PairTable.open(config.data).numbers("is_noise").astype(bool)
    lines = [line for line in metrics(run) if line["kind"] == "noise"]
    assert [(line["epoch"], "mixture" in line) for line in lines] == [(1, False), (2, True), (3, True)]
    told = [line for line in capfd.readouterr().err.splitlines() if "samples/s" in line]
    before = np.zeros(len(truth), np.int32)
    for epoch, (line, said) in enumerate(zip(lines, told, strict=True), 1):
        found = columns(run, epoch)
        assert list(found) == ["row", "loss", "p_noise", *OPINION]
        assert (found["p_noise"] == 0).all() == (epoch == 1)
        assert found["confidence"] == pytest.approx(np.exp(-found["loss"]), rel=1e-4)
        assert (found["noisy"] == (found["confidence"] < 0.032)).all()
        assert (found["times_noisy"] - before == found["noisy"]).all()  # every pair once an epoch
        before = found["times_noisy"]
        real, noisy = truth[found["row"]], found["noisy"]
        assert 0 < noisy.mean() < 1 and line["noisy_share"] == pytest.approx(noisy.mean())
        auroc = roc_auc_score(real, 1 - found["confidence"].astype(float))
        assert line["confidence_auroc"] == pytest.approx(auroc)
        assert line["noisy_precision"] == pytest.approx(precision_score(real, noisy))
        assert line["noisy_recall"] == pytest.approx(recall_score(real, noisy))
        model = f" · mean p_noise {line['mean_p_noise']:.2f} (AUROC {line['auroc']:.3f})" if epoch > 1 else ""
        assert f"samples/s{model} · called noisy {noisy.mean():.2f} (AUROC of 1-c {auroc:.3f})" in said


def test_figures_that_are_undefined_are_nan_and_pairs_never_seen_do_not_count() -> None:
    ledger = Ledger(5, NoiseConfig())
    rows, truth = np.array([0, 1, 3, 4]), np.array([1, 0, 0, 1])
    ledger.record(torch.tensor([0, 1, 2]), torch.ones(3), None, torch.tensor([1e-9, 1e-10, 0.5]))
    ledger.flush()
    assert ledger.opinion is not None
    assert judged(ledger.opinion, rows, None) == {"noisy_share": 0.0}
    figures = judged(ledger.opinion, rows, truth)
    assert figures["confidence_auroc"] == 0.0  # in float32 both would have 1-c = 1
    assert np.isnan(figures["noisy_precision"]) and figures["noisy_recall"] == 0
    ledger.opinion.noisy[:2] = [True, False]
    assert judged(ledger.opinion, rows, truth) == pytest.approx(
        {"noisy_share": 0.5, "confidence_auroc": 0.0, "noisy_precision": 1.0, "noisy_recall": 1.0}
    )


def test_a_resumed_run_has_the_opinion_of_one_never_stopped(opinionated: Make, metrics: Metrics) -> None:
    whole = opinionated("whole", checkpoint_steps=5)
    train(whole)
    resumed = opinionated("resumed", checkpoint_steps=5)
    shutil.copytree(whole.out, resumed.out)
    for late in ("step-00000020", "step-00000024"):
        shutil.rmtree(Path(resumed.out) / "checkpoints" / late, ignore_errors=True)
    for file in (Path(resumed.out) / "columns").iterdir():
        file.unlink()
    train(resumed, resume=True)
    assert metrics(Path(whole.out)) == metrics(Path(resumed.out))
    wanted, found = columns(Path(whole.out), 3), columns(Path(resumed.out), 3)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted) and wanted["times_noisy"].max() == 3


def drawn_steps() -> list[tuple[torch.Tensor, ...]]:
    """Rows, losses, raw, confidence, noisy of some steps of 8 pairs."""
    random = torch.Generator().manual_seed(0)
    uniform = torch.rand(6, 3, 8, generator=random)
    rows = [torch.randperm(20, generator=random)[:8] for _ in range(6)]
    return [(r, loss, loss > 0.1, c, c < 0.7) for r, (loss, c, _) in zip(rows, uniform, strict=True)]


def filled(world: int, number: int) -> Ledger:
    """The ledger of rank `number` of `world` after the steps; a step's third and fourth say nothing of their own."""
    ledger = Ledger(20, NoiseConfig())
    for i, step in enumerate(drawn_steps()):
        mine = [values.chunk(world)[number] for values in step]
        ledger.record(*(mine if i not in (2, 3) else mine[:3]))
    ledger.flush()
    return ledger


def rank_of_two(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    filled(2, number).save(folder / f"{number}.npz")
    dist.destroy_process_group()


def test_two_ranks_know_what_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["truepair.train"])
    processes = [context.Process(target=rank_of_two, args=(number, tmp_path)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    alone = filled(1, 0)
    assert alone.opinion is not None and alone.opinion.times_noisy.max() > 1
    for number in range(2):
        ledger = Ledger(20, NoiseConfig())
        ledger.load(tmp_path / f"{number}.npz")
        assert np.array_equal(ledger.losses, alone.losses, equal_nan=True) and ledger.opinion is not None
        for name in OPINION:
            found, wanted = getattr(ledger.opinion, name), getattr(alone.opinion, name)
            assert np.array_equal(found, wanted, equal_nan=name == "confidence")
