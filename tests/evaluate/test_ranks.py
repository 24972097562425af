"""recall@k: the share of queries with a right key among the k nearest; ties as chance has them; in bounded memory."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from truepair.evaluate.ranks import one_positive_each, positives, probability_of_hit
from truepair.evaluate.retrieval import recall_at_k


def brute_force(queries, keys, right, k):
    """CLIP_benchmark's recall: the whole score matrix, its top k, is any of them right?"""
    top = np.argsort(-(queries @ keys.T).numpy(), axis=1)[:, :k]
    return np.mean([bool(set(top[i]) & right[i]) for i in range(len(queries))])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_recall_equals_brute_force_with_several_right_keys_and_any_tile(data):
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 25))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    queries, keys = (normalize(torch.randn(count, 6, generator=generator), dim=1) for count in (n, m))
    right = [data.draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=4)) for _ in range(n)]
    edges = np.array([(i, j) for i in range(n) for j in right[i]], np.int64)
    tile = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 30)))
    ks = (1, 5, 10)
    found = recall_at_k(queries, keys, positives(edges[:, 0], edges[:, 1], n), ks, tile=tile)
    assert found == pytest.approx({k: brute_force(queries, keys, right, k) for k in ks})


def test_ties_count_as_the_average_over_all_orders():
    """Two right and three wrong keys tie behind one better wrong key; a third right key lies behind them."""
    cosines, right = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1], {1, 2, 6}
    keys = torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])
    query = torch.tensor([[1.0, 0.0]])
    orders = [(0, *tied, 6) for tied in permutations(range(1, 6))]
    for k in range(1, 8):
        expected = np.mean([bool(set(order[:k]) & right) for order in orders])
        edges = positives(np.zeros(3, np.int64), np.array([1, 2, 6]), 1)
        assert recall_at_k(query, keys, edges, [k])[k] == pytest.approx(expected)


def test_a_collapsed_model_scores_what_guessing_scores():
    """All features equal up to float32 noise."""
    n = 200
    features = normalize(
        torch.ones(n, 64) + 1e-7 * torch.randn(n, 64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    recall = recall_at_k(features, features.flip(0), one_positive_each(torch.arange(n)), (1, 10))
    assert recall == pytest.approx({1: 1 / n, 10: 10 / n})


def test_a_query_equal_to_its_key_is_found_whatever_the_order_of_summation():
    features = normalize(torch.randn(300, 513, generator=torch.Generator().manual_seed(0)), dim=1)
    right = one_positive_each(torch.arange(300))
    assert recall_at_k(features, features, right, [1], tile=(7, 11)) == {1: 1.0}


def test_a_diverged_model_finds_nothing():
    nan = torch.full((3, 2), torch.nan)
    assert recall_at_k(nan, nan, one_positive_each(torch.arange(3)), (1, 5)) == {1: 0, 5: 0}


def test_more_ranks_than_keys_find_everything():
    one = torch.tensor([[1.0, 0.0]])
    assert recall_at_k(one, one, one_positive_each(torch.tensor([0])), (1, 5)) == {1: 1.0, 5: 1.0}


def test_a_query_without_a_right_key_is_refused():
    with pytest.raises(ValueError, match="without a right key"):
        probability_of_hit(torch.eye(2), torch.eye(2), positives(np.array([0]), np.array([1]), 2), [1])
