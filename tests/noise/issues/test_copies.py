"""Copies of an image are put together, by bytes and by looks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import evidence, looks_of

from truepair.noise.issues.copies import find, near_duplicate_image

THRESHOLD = near_duplicate_image.threshold


def partition(labels):
    """The sets of places that share a label, -1 left out."""
    return {frozenset(np.flatnonzero(labels == label)) for label in set(labels) - {-1}}


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_scores_and_groups_are_those_of_comparing_all_with_all(seed, n):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, n, n)
    hashes = generator.choice([0xFFFF, 0xFFFF0000, 0xFFFE, 0x3FFF, 0xFFFF00FF], n).astype(np.uint64)[image]
    found = find(evidence(n=n, image=image, looks=looks_of(hashes)), THRESHOLD)
    bits = np.bitwise_count(hashes[:, None] ^ hashes).astype(float)
    bits[image[:, None] == image] = 0
    np.fill_diagonal(bits, 64)
    nearest = bits.min(axis=1)
    np.testing.assert_allclose(found.score, np.where(nearest <= 4, 1 - nearest / 16, 0))
    linked = bits <= 4
    for _ in range(n):
        linked |= linked @ linked
    together = {frozenset(np.flatnonzero(row | (np.arange(n) == i))) for i, row in enumerate(linked) if row.any()}
    assert partition(found.group) == together
    assert np.array_equal(found.group >= 0, found.score >= THRESHOLD)


def test_blank_images_are_compared_by_bytes_alone_and_undecoded_ones_only_so():
    looks = looks_of([7, 7, 7, 7], spread=0.5)
    looks.seen[2:] = False
    found = find(evidence(n=4, image=np.array([0, 1, 2, 2]), looks=looks), THRESHOLD)
    assert found.score.tolist() == [0, 0, 1, 1] and found.group.tolist() == [-1, -1, 2, 2]
    alone = find(evidence(n=4, looks=looks), THRESHOLD)
    assert np.isnan(alone.score).tolist() == [False, False, True, True]


def test_one_layout_in_other_colours_is_no_copy():
    colours = np.zeros((3, 12))
    colours[1, 4], colours[2, 4] = 16, 40
    found = find(evidence(n=3, looks=looks_of([99, 99, 99], colours)), THRESHOLD)
    assert found.score.tolist() == [1, 1, 0]


def test_one_row_has_no_copy():
    found = find(evidence(n=1), THRESHOLD)
    assert found.score.tolist() == [0] and found.group.tolist() == [-1]
