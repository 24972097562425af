"""Near hashes are found without comparing all with all, and none is missed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import looks_of

from truepair.noise.issues import alike as module
from truepair.noise.issues.alike import NEAR_COLOUR, components, groups, near_pairs


def close_ones(seed, n, flips):
    """n hashes, each one of a few with up to `flips` bits flipped."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, max(1, n // 4), np.uint64)
    hashes = centres[generator.integers(0, len(centres), n)]
    for _ in range(flips):
        flip = generator.random(n) < 0.7
        hashes[flip] ^= np.uint64(1) << generator.integers(0, 64, flip.sum(), np.uint64)
    return hashes


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 6), st.booleans())
def test_all_pairs_of_few_differing_bits_and_near_colours_are_found(seed, n, most, many):
    hashes = close_ones(seed, n, 5)
    colours = np.random.default_rng(seed).integers(0, 2 * NEAR_COLOUR, (n, 12))
    colours[:, 1:] = 0
    looks = looks_of(hashes, colours)
    looks.seen[::7], looks.spread[::11] = False, 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", 0 if many else 1 << 17)
        low, high, bits = near_pairs(looks, most)
    usable = [i for i in range(n) if looks.seen[i] and looks.spread[i] >= 2]
    wanted = {
        (i, j): (int(hashes[i]) ^ int(hashes[j])).bit_count()
        for i in usable
        for j in usable
        if i < j
        and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= most
        and abs(int(colours[i, 0]) - int(colours[j, 0])) <= NEAR_COLOUR
    }
    assert dict(zip(zip(low.tolist(), high.tolist(), strict=True), bits.tolist(), strict=True)) == wanted


def test_a_crowd_of_equal_hashes_is_one_group_at_little_cost():
    n = 20_000
    low, high, bits = near_pairs(looks_of([12345] * n), 4)
    assert len(low) <= module.CROWD_REACH * n and not bits.any()
    assert (components(n, low, high) == 0).all()


@settings(max_examples=80)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_a_union_find(case):
    n, edges = case
    parent = list(range(n))

    def root(i):
        return i if parent[i] == i else root(parent[i])

    for i, j in edges:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    first, second = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    label = components(n, first, second)
    assert label.tolist() == [root(i) for i in range(n)]
    size = np.bincount(label, minlength=n)
    assert groups(label).tolist() == [root(i) if size[root(i)] > 1 else -1 for i in range(n)]


def test_a_long_chain_is_one_component():
    n = 100_000
    order = np.random.default_rng(0).permutation(n)
    assert (components(n, order[:-1], order[1:]) == 0).all()
