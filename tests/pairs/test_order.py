"""The order of rows: every epoch a permutation, the same for any number of ranks, near-sequential on disk."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
from truepair.pairs.order import Order


@st.composite
def orders(draw: Any) -> Order:
    """Orders over a random subset of a table, of any proportions of block, window and batch."""
    table = draw(st.integers(1, 400))
    rows = np.flatnonzero(np.random.default_rng(draw(st.integers(0, 99))).random(table) < draw(st.floats(0.3, 1.0)))
    rows = rows if len(rows) else np.array([0])
    batch = draw(st.integers(1, len(rows)))
    return Order(rows, batch, draw(st.integers(0, 2**40)), draw(st.integers(1, 60)), draw(st.integers(1, 500)))


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray:
    return np.concatenate([order.batch(epoch, step) for step in range(order.steps)])


@settings(deadline=None, max_examples=80)
@given(orders(), st.integers(0, 3))
def test_an_epoch_reads_rows_in_use_at_most_once_and_exactly_its_whole_batches(order: Order, epoch: int) -> None:
    seen = epoch_of(order, epoch)
    assert len(seen) == len(np.unique(seen)) == len(order.rows) // order.batch_size * order.batch_size
    assert np.isin(seen, order.rows).all()


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 3))
def test_any_step_can_be_the_first_one_read(order: Order, epoch: int) -> None:
    sequential = [order.batch(epoch, step) for step in range(order.steps)]
    for step in reversed(range(order.steps)):
        again = Order(order.rows, order.batch_size, order.seed, order.block, order.window)
        assert (again.batch(epoch, step) == sequential[step]).all()


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(1, 8))
def test_the_shares_of_all_ranks_are_the_global_batch_in_order(order: Order, world: int) -> None:
    if order.batch_size % world:
        with pytest.raises(UserError, match=f"multiple of {world} ranks"):
            order.local(0, 0, 0, world)
        return
    shares = [order.local(1, order.steps - 1, rank, world) for rank in range(world)]
    assert (np.concatenate(shares) == order.batch(1, order.steps - 1)).all()


def test_epochs_and_seeds_give_other_orders() -> None:
    first, other = Order(np.arange(1000), 50, seed=1), Order(np.arange(1000), 50, seed=2)
    assert (epoch_of(first, 0) != epoch_of(first, 1)).mean() > 0.9
    assert (epoch_of(first, 0) != epoch_of(other, 0)).mean() > 0.9


def test_rows_left_out_of_an_epoch_are_others_each_time() -> None:
    order = Order(np.arange(1023), 512, block=16, window=64)
    left_out = [set(range(1023)) - set(epoch_of(order, epoch).tolist()) for epoch in range(4)]
    assert all(len(rows) == 511 for rows in left_out)
    assert set.intersection(*left_out[:2]) != left_out[0]


def test_rows_of_a_window_come_from_few_blocks_of_neighbours() -> None:
    order = Order(np.arange(100_000), 100, block=500, window=5_000)
    for window in range(20):
        rows = np.concatenate([order.batch(0, 50 * window + step) for step in range(50)])
        assert len(np.unique(rows // 500)) <= 5_000 // 500 + 1


def test_the_rows_of_a_window_are_mixed_over_its_batches() -> None:
    order = Order(np.arange(100_000), 100, block=500, window=5_000)
    assert min(len(np.unique(order.batch(0, step) // 500)) for step in range(50)) >= 8  # of 10 or 11 blocks


def test_every_row_is_as_likely_early_as_late() -> None:
    order = Order(np.arange(240), 24, block=20, window=96)
    first_half = sum((np.isin(np.arange(240), epoch_of(order, epoch)[:120])).astype(int) for epoch in range(400))
    assert np.abs(first_half / 400 - 0.5).max() < 0.15  # 5 standard deviations of a fair coin: 0.125


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 6))
def test_no_batch_holds_a_group_twice_where_that_is_easily_possible(seed: int, batch: int, copies: int) -> None:
    rows = 16 * batch
    groups = np.random.default_rng(seed).permutation(np.arange(rows) // copies)
    order = Order(np.arange(rows), batch, seed, block=8, window=rows, groups=[groups])
    assert [order.shared(0, step) for step in range(order.steps)] == [0] * order.steps
    assert len(np.unique(epoch_of(order))) == rows


def test_groups_of_two_kinds_are_kept_apart_together() -> None:
    captions, images = np.arange(512) // 4, np.arange(512) % 128
    order = Order(np.arange(512), 32, groups=[captions, images])
    plain = Order(np.arange(512), 32)
    assert sum(order.shared(0, step) for step in range(16)) == 0
    batches = [plain.batch(0, step) for step in range(16)]
    assert sum(64 - len(np.unique(captions[b])) - len(np.unique(images[b])) for b in batches) > 20


@pytest.mark.parametrize("values", [1, 2, 5])
def test_groups_that_cannot_be_kept_apart_lose_no_row(values: int) -> None:
    order = Order(np.arange(640), 64, groups=[np.arange(640) % values])
    assert sorted(epoch_of(order).tolist()) == list(range(640))
    assert order.shared(0, 0) == 64 - values


def test_fewer_pairs_than_a_batch_are_said() -> None:
    with pytest.raises(UserError, match="7 pairs do not fill one batch of 8"):
        Order(np.arange(7), 8)


def test_a_step_beyond_the_epoch_is_an_error() -> None:
    with pytest.raises(IndexError, match="step 4 of an epoch of 4"):
        Order(np.arange(40), 10).batch(0, 4)
