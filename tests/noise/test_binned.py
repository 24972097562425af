"""Histograms keep the exact moments of the losses, add up across ranks, and count what they leave out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from truepair.noise import finite_range, fit, histogram
from truepair.noise.binned import CHUNK, Histogram


def moments(binned: Histogram) -> tuple[float, float]:
    """Mean and standard deviation in the losses' units, from the sums of the bins."""
    bins = len(binned.counts)
    centre = (np.arange(bins) + 0.5) / bins
    n = binned.counts.sum()
    mean = (binned.counts @ centre + binned.offsets.sum()) / n
    square = (binned.counts @ centre**2 + 2 * binned.offsets @ centre + binned.squares.sum()) / n
    span = binned.high - binned.low
    return binned.low + span * mean, span * math.sqrt(max(0, square - mean**2))


@pytest.mark.parametrize("bins", [1, 3, 2048])
def test_bins_keep_the_exact_mean_and_deviation_of_the_losses(bins: int) -> None:
    losses = np.random.default_rng(0).gamma(2, 1.5, CHUNK + 777).astype(np.float32)
    mean, std = moments(histogram(losses, *finite_range(losses), bins=bins))
    assert mean == pytest.approx(losses.astype(np.float64).mean(), rel=1e-9)
    assert std == pytest.approx(losses.astype(np.float64).std(), rel=1e-9)


def test_counts_are_those_of_numpy() -> None:
    losses = np.random.default_rng(1).normal(3, 1, 10_000)
    low, high = finite_range(losses)
    assert (low, high) == (losses.min(), losses.max())
    assert histogram(losses, low, high, bins=64).counts.tolist() == np.histogram(losses, 64, (low, high))[0].tolist()


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32) | st.just(math.nan)),
    st.integers(1, 4),
)
def test_the_sum_over_ranks_is_the_histogram_of_all_losses(losses: np.ndarray, ranks: int) -> None:
    shares = np.array_split(losses, ranks)
    ranges = np.array([finite_range(share) for share in shares])
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    assert (low, high) == finite_range(losses)
    parts = [histogram(share, low, high, bins=16) for share in shares]
    whole = histogram(losses, low, high, bins=16)

    added = parts[0]
    for part in parts[1:]:
        added = added + part
    reduced = parts[0].with_sums(np.sum([part.sums() for part in parts], axis=0))
    for merged in (added, reduced):
        assert merged.sums() == pytest.approx(whole.sums(), abs=1e-12)
        assert (merged.low, merged.high, merged.unseen) == (low, high, whole.unseen)


def test_the_fit_of_added_ranks_is_the_fit_of_all_losses() -> None:
    random = np.random.default_rng(2)
    losses = np.append(random.normal(1, 0.5, 6000), random.normal(5, 1, 4000))
    low, high = finite_range(losses)
    ranks = [histogram(losses[rank::3], low, high) for rank in range(3)]
    together = fit(ranks[0] + ranks[1] + ranks[2])
    alone = fit(histogram(losses, low, high))
    assert together.means == pytest.approx(alone.means, rel=1e-9)
    assert together.weights == pytest.approx(alone.weights, rel=1e-9)


def test_unseen_losses_are_counted_apart_and_infinities_at_the_ends() -> None:
    losses = np.array([1.0, np.nan, 2.0, np.inf, -np.inf, np.nan, np.nan])
    assert finite_range(losses) == (1.0, 2.0)
    binned = histogram(losses, 1.0, 2.0, bins=4)
    assert (binned.unseen, binned.clipped) == (3, 2)
    assert binned.counts.tolist() == [2, 0, 0, 2]


def test_without_a_finite_loss_the_histogram_is_empty() -> None:
    losses = np.array([np.nan, np.inf])
    binned = histogram(losses, *finite_range(losses))
    assert (binned.counts.sum(), binned.unseen, binned.clipped) == (0, 1, 1)


def test_ranges_that_differ_or_do_not_exist_are_refused() -> None:
    losses = np.arange(5.0)
    with pytest.raises(ValueError, match="same range"):
        histogram(losses, 0.0, 4.0) + histogram(losses, 0.0, 5.0)
    for low, high in [(math.nan, 1.0), (0.0, math.inf), (-1.7e308, 1.7e308)]:
        with pytest.raises(ValueError, match="no histogram"):
            histogram(losses, low, high)
