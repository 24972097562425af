"""Two opinions on the same pairs: how alike they order them, and which pairs each doubts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from truepair.evaluate.agreement import agreement, rank_correlation


@settings(max_examples=50)
@given(st.data())
def test_rank_correlation_is_scipys_with_ties(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    first, second = (np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))) / 5 for _ in range(2))
    wanted = math.nan if 1 in (len(set(first)), len(set(second))) else spearmanr(first, second).statistic
    assert rank_correlation(first, second) == pytest.approx(wanted, nan_ok=True)


def test_pairs_are_counted_by_who_doubts_them_and_unknown_ones_left_out() -> None:
    first = np.array([0.9, 0.5, 0.8, 0.1, 0.2, np.nan, 0.3])
    second = np.array([0.6, 0.7, 0.2, 0.9, 0.1, 0.9, np.nan])
    found = agreement(first, second)
    assert (found.both, found.first, found.second, found.neither, found.n) == (2, 1, 1, 1, 5)
    assert found.rank_correlation == pytest.approx(spearmanr(first[:5], second[:5]).statistic)


def test_no_pair_at_all_agrees_on_nothing() -> None:
    found = agreement(np.array([np.nan]), np.array([0.5]))
    assert found.n == found.neither == 0 and math.isnan(found.rank_correlation)
