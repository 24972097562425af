"""The account of every pair: recorded, averaged, fitted, saved."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.config import NoiseConfig
from truepair.noise import fit_losses
from truepair.train.ledger import Ledger


def filled(losses: np.ndarray, average: float = 0.0) -> Ledger:
    ledger = Ledger(len(losses), NoiseConfig(average=average))
    ledger.record(torch.arange(len(losses)), torch.from_numpy(losses))
    ledger.flush()
    return ledger


def two_modes(count: int = 2000) -> np.ndarray:
    random = np.random.default_rng(0)
    noisy = random.random(count) < 0.4
    return np.where(noisy, random.normal(5, 0.7, count), random.normal(2, 0.5, count)).astype(np.float32)


def test_what_is_recorded_stands_in_its_rows_after_a_flush() -> None:
    ledger = Ledger(6, NoiseConfig())
    ledger.record(torch.tensor([4, 1]), torch.tensor([0.5, 2.0]))
    ledger.record(torch.tensor([0, 4]), torch.tensor([3.0, 0.25]))
    assert np.isnan(ledger.losses).all()
    assert len(ledger.flush()) == 0
    assert ledger.losses.tolist()[:2] == [3.0, 2.0] and ledger.losses[4] == 0.25
    assert np.isnan(ledger.losses[[2, 3, 5]]).all()
    assert len(ledger.flush()) == 0 and ledger.losses[4] == 0.25


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 9, width=32)), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_average_is_the_exponential_one_of_each_rows_losses(seen: list[tuple[int, float]], keep: float) -> None:
    ledger, wanted = Ledger(5, NoiseConfig(average=keep)), {}
    for i, (row, loss) in enumerate(seen):
        ledger.record(torch.tensor([row]), torch.tensor([loss]))
        wanted[row] = keep * wanted[row] + (1 - keep) * loss if row in wanted else loss
        if i % 3 == 0:
            ledger.flush()
    ledger.flush()
    for row in range(5):
        assert ledger.losses[row] == pytest.approx(wanted.get(row, np.nan), rel=1e-5, abs=1e-6, nan_ok=True)


def test_rows_whose_loss_is_not_finite_are_returned() -> None:
    ledger = Ledger(9, NoiseConfig(average=0.5))
    ledger.record(torch.tensor([4, 1, 7]), torch.tensor([float("nan"), 2.0, float("inf")]))
    assert ledger.flush().tolist() == [4, 7]


def test_a_loss_of_synthetic_captions_is_no_pairs_but_told_of_by_its_row() -> None:
    ledger = Ledger(9, NoiseConfig())
    ledger.record(torch.tensor([0, 4, 1]), torch.tensor([1.0, 2.0, 3.0]))
    ledger.flush()
    ledger.record(torch.tensor([0, 4, 1]), torch.tensor([float("nan"), 5.0, 6.0]), torch.tensor([False, False, True]))
    assert ledger.flush().tolist() == [0]
    assert ledger.losses[[0, 4, 1]].tolist() == [1.0, 2.0, 6.0] and np.isnan(ledger.losses[[2, 3, 5, 6, 7, 8]]).all()


def test_p_noise_is_zero_until_the_first_fit_and_for_pairs_never_seen() -> None:
    losses = two_modes()
    ledger = Ledger(2100, NoiseConfig())
    ledger.record(torch.arange(2000), torch.from_numpy(losses))
    ledger.flush()
    assert (ledger.believe(torch.arange(2100)) == 0).all()
    ledger.refit()
    assert (ledger.p_noise[2000:] == 0).all() and ledger.p_noise[:2000].max() > 0.99


def test_a_refit_is_the_noise_rooms_fit_of_the_same_losses() -> None:
    losses = two_modes()
    ledger = filled(losses)
    mixture, wanted = ledger.refit(), fit_losses(losses)
    assert mixture.means == pytest.approx(wanted.means, rel=1e-6)
    assert np.allclose(ledger.p_noise, wanted.posterior(losses), atol=1e-6)
    rows = torch.tensor([5, 1999, 0])
    assert ledger.believe(rows).numpy() == pytest.approx(ledger.p_noise[rows.numpy()])
    assert ledger.believe(rows).dtype == torch.float32


def test_a_saved_ledger_comes_back_as_it_was(tmp_path: Path) -> None:
    ledger = filled(two_modes())
    empty = Ledger(2000, NoiseConfig())
    for kept in (empty, ledger):
        kept.save(tmp_path / "ledger.npz")
        loaded = Ledger(2000, NoiseConfig())
        loaded.load(tmp_path / "ledger.npz")
        assert np.array_equal(loaded.losses, kept.losses, equal_nan=True) and (loaded.p_noise == kept.p_noise).all()
        assert loaded.mixture == kept.mixture
        ledger.refit()


def test_a_ledger_of_another_table_is_refused(tmp_path: Path) -> None:
    filled(two_modes(64)).save(tmp_path / "ledger.npz")
    with pytest.raises(ValueError, match="it knows 64 pairs, the table has 65"):
        Ledger(65, NoiseConfig()).load(tmp_path / "ledger.npz")


def test_columns_are_written_for_the_rows_in_use(tmp_path: Path) -> None:
    ledger = filled(two_modes())
    ledger.refit()
    rows = np.arange(10, 2000, 7)
    ledger.write_columns(tmp_path / "columns" / "epoch-0001.parquet", rows)
    written = pq.read_table(tmp_path / "columns" / "epoch-0001.parquet")
    assert written.column_names == ["row", "loss", "p_noise"]
    assert (written.column("row").to_numpy() == rows).all()
    assert (written.column("loss").to_numpy() == ledger.losses[rows]).all()
    assert (written.column("p_noise").to_numpy() == ledger.p_noise[rows]).all()
