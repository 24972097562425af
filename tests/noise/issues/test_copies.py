"""Copies of an image are put together, by bytes and by looks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import evidence, looks_of

from truepair.noise.issues.copies import find, near_duplicate_image

THRESHOLD = near_duplicate_image.threshold


def written_out(image, hashes, match):
    """Score and centre of each row, of hashes that set 24 bits or more: the best match not yet taken and its copies."""
    bits = np.bitwise_count(hashes[:, None] ^ hashes).astype(int)
    centre = np.full(len(image), -1)
    best = [match[image == number].max() for number in image]
    for row in sorted(range(len(image)), key=lambda row: (-best[row], np.flatnonzero(image == image[row])[0])):
        if centre[row] < 0:
            centre[(centre < 0) & (bits[row] <= 4)] = row
    together = (centre[:, None] == centre) & ~np.eye(len(image), dtype=bool)
    nearest = np.where(together & (bits <= 4), bits, 16).min(axis=1)
    return 1 - nearest / 16, np.where(together.any(axis=1), centre, -1)


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_scores_and_groups_are_those_of_comparing_all_with_all(seed, n):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, n, n)
    match = generator.permutation(n).astype(np.float32)
    kinds = [0xFFFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0x3FFFFFFF, 0xFFFFFFFF00000000, 0xFFFFFF00]
    hashes = generator.choice(np.array(kinds, np.uint64), n)[image]
    found = find(evidence(n=n, image=image, looks=looks_of(hashes), neg_clip_loss=match), THRESHOLD)
    score, centre = written_out(image, hashes, match)
    np.testing.assert_allclose(found.score, score)
    assert np.array_equal(found.group[:, None] == found.group, (centre[:, None] == centre))
    assert np.array_equal(found.group >= 0, centre >= 0) and np.array_equal(found.group >= 0, found.score >= THRESHOLD)


def test_a_group_holds_the_best_match_and_its_copies_but_no_copies_of_copies():
    chain = [0xFFFFFFFF00000000]
    for step in range(16):
        chain.append(chain[-1] ^ (0xF << (4 * step)))
    match = np.random.default_rng(1).random(len(chain)).astype(np.float32)
    found = find(evidence(n=len(chain), looks=looks_of(chain), neg_clip_loss=match), THRESHOLD)
    for group in set(found.group.tolist()) - {-1}:
        rows = np.flatnonzero(found.group == group)
        kept = rows[match[rows].argmax()]
        assert all((chain[kept] ^ chain[row]).bit_count() <= 4 for row in rows)
    assert len(set(found.group.tolist()) - {-1}) >= 4 and (found.score[found.group < 0] == 0).all()


def test_hundreds_of_images_with_one_look_are_one_group():
    hashes = [0xFFFFFFFF] * 300 + [0xFFFFFFFF ^ 1 << bit % 32 for bit in range(300)]
    match = np.zeros(600, np.float32)
    match[17] = 1
    found = find(evidence(n=600, looks=looks_of(hashes), neg_clip_loss=match), THRESHOLD)
    assert (found.group == found.group[0]).all() and (found.score[:300] == 1).all() and (found.score >= 15 / 16).all()


def test_rows_that_could_not_be_scored_are_put_together_too():
    known = {"image": np.array([0, 1, 2]), "neg_clip_loss": np.full(3, np.nan, np.float32)}
    found = find(evidence(n=3, looks=looks_of([0xFFFFFFFF] * 3), **known), THRESHOLD)
    assert (found.score == 1).all() and (found.group == found.group[0]).all()


def test_blank_images_are_compared_by_bytes_alone_and_undecoded_ones_only_so():
    looks = looks_of([7, 7, 7, 7])
    looks.seen[2:] = False
    found = find(evidence(n=4, image=np.array([0, 1, 2, 2]), looks=looks), THRESHOLD)
    assert found.score.tolist() == [0, 0, 1, 1] and found.group.tolist() == [-1, -1, 2, 2]
    alone = find(evidence(n=4, looks=looks), THRESHOLD)
    assert np.isnan(alone.score).tolist() == [False, False, True, True]


def test_one_layout_in_other_colours_is_no_copy():
    colours = np.zeros((3, 12))
    colours[1, 4], colours[2, 4] = 16, 40
    found = find(evidence(n=3, looks=looks_of([0xFFFF, 0xFFFF, 0xFFFF], colours)), THRESHOLD)
    assert found.score.tolist() == [1, 1, 0]


def test_one_row_has_no_copy():
    found = find(evidence(n=1), THRESHOLD)
    assert found.score.tolist() == [0] and found.group.tolist() == [-1]
