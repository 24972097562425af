"""Near hashes are found without comparing all with all, and none is missed but where far too many are alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import looks_of

from truepair.noise.issues import alike as module
from truepair.noise.issues.alike import NEAR_COLOUR, comparable, components, groups, near_pairs, nearest, stars, twins


def close_ones(seed, n, flips):
    """n hashes, each one of a few with up to `flips` bits flipped."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, max(1, n // 4), np.uint64)
    hashes = centres[generator.integers(0, len(centres), n)]
    for _ in range(flips):
        flip = generator.random(n) < 0.7
        hashes[flip] ^= np.uint64(1) << generator.integers(0, 64, flip.sum(), np.uint64)
    return hashes


def bits_of_near(looks, others, most):
    """(n, m) bits that differ, 64 where images are not near: written out."""
    bits = np.bitwise_count(looks.hash[:, None] ^ others.hash)
    fewer = np.minimum(np.bitwise_count(looks.hash)[:, None], np.bitwise_count(others.hash))
    apart = np.abs(looks.colours[:, None].astype(int) - others.colours).max(axis=2, initial=0)
    told = comparable(looks)[:, None] & comparable(others)
    return np.where(told & (bits <= most) & (6 * bits <= fewer) & (apart <= NEAR_COLOUR), bits, 64)


def close_looks(seed, n):
    """Near hashes of which some set few bits, in near colours; some unseen, some blank."""
    hashes = close_ones(seed, n, 5)
    hashes[::3] &= np.uint64(0x0000FF0000FF0000)
    colours = np.random.default_rng(seed).integers(0, 2 * NEAR_COLOUR, (n, 12))
    colours[:, 1:] = 0
    looks = looks_of(hashes, colours)
    looks.seen[::7], looks.hash[::11] = False, 0b1101
    return looks


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 6), st.booleans())
def test_all_pairs_of_few_differing_bits_and_near_colours_are_found(seed, n, most, many):
    looks, others = close_looks(seed, n), close_looks(seed, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", 0 if many else 1 << 17)
        patch.setattr(module, "AT_ONCE", 7)
        low, high, bits = near_pairs(looks, most)
        fewest = nearest(looks, others, most)
    wanted = np.triu(bits_of_near(looks, looks, most) + 1, 1)
    found = np.zeros_like(wanted)
    found[low, high] = bits + 1
    assert np.array_equal(found, np.where(wanted > 64, 0, wanted)) and len(low) == (found > 0).sum()
    assert np.array_equal(fewest, bits_of_near(looks, others, most).min(axis=1, initial=64))


def test_a_bucket_of_hundreds_is_compared_as_a_whole():
    generator = np.random.default_rng(0)
    hashes = np.unique(generator.integers(0, 1 << 11, 1200, np.uint64)) | np.uint64(0xFFFF_FFFF_FF00_0000)
    looks = looks_of(hashes)
    low, high, _ = near_pairs(looks, 4)
    wanted = np.triu(bits_of_near(looks, looks, 4) <= 4, 1)
    assert len(low) == wanted.sum() and wanted[low, high].all()


def test_a_crowd_is_cut_to_what_is_granted(monkeypatch):
    monkeypatch.setattr(module, "GRANTED", 1)
    n = 2000
    low, _, _ = near_pairs(looks_of([0xFFFF_FFFF] * n), 4)
    assert len(low) <= module.REACH * n


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(0, 40))
def test_twins_have_one_hash_and_one_set_of_colours(seed, n):
    generator = np.random.default_rng(seed)
    colours = np.zeros((n, 12), np.uint8)
    colours[:, [0, 7, 11]] = generator.integers(0, 2, (n, 3))
    looks = looks_of(generator.choice([0xFF, 0xFF00, 0b11], n), colours)
    looks.seen[::5] = False
    told = comparable(looks)
    key = [
        (int(h), *c) if ok else i for i, (h, c, ok) in enumerate(zip(looks.hash, colours.tolist(), told, strict=True))
    ]
    assert twins(looks).tolist() == [key.index(k) for k in key]


@settings(max_examples=80)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_stars_are_made_in_order_of_whoever_is_not_yet_near_a_centre(case):
    n, edges = case
    edges = {(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]}
    centre = list(range(n))
    for place in range(n):
        centre[place] = next((c for c in range(place) if centre[c] == c and (c, place) in edges), place)
    low, high = (np.array([edge[side] for edge in sorted(edges)], np.int64) for side in (0, 1))
    assert stars(n, low, high).tolist() == centre


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
