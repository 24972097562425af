"""Images of a test set are found in the table that is trained on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import evidence, looks_of

from truepair.noise.issues.base import Second
from truepair.noise.issues.leak import leaked_image


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 25), st.integers(1, 15))
def test_a_row_is_scored_by_the_nearest_image_of_the_second_table(seed, n, m):
    generator = np.random.default_rng(seed)
    near = [0xFFFFFFFF, 0xFFFFFFFE, 0x3FFFFFFF, 0xFFFFFFF, 0xFFFFFFFF00000000]
    own, other = (generator.choice(near, size).astype(np.uint64) for size in (n, m))
    same = generator.random(n) < 0.1
    given = evidence(n=n, looks=looks_of(own), seconds=(Second("test", same, looks_of(other)),))
    score = leaked_image.find(given, leaked_image.threshold).score
    nearest = np.bitwise_count(own[:, None] ^ other).min(axis=1).astype(float)
    np.testing.assert_allclose(score, np.where(same, 1, np.where(nearest <= 4, 1 - nearest / 16, 0)))


def test_none_of_hundreds_of_copies_of_a_test_image_is_missed():
    hashes = [0xFFFFFFFF] * 300 + [0xFFFFFFFF ^ 1 << bit % 64 for bit in range(300)]
    given = evidence(n=600, looks=looks_of(hashes), seconds=(Second("a", np.zeros(600, bool), looks_of([0xFFFFFFFF])),))
    score = leaked_image.find(given, leaked_image.threshold).score
    assert (score[:300] == 1).all() and (score[300:] == np.float32(15 / 16)).all()


def test_every_second_table_counts_and_none_is_a_reason():
    seconds = tuple(
        Second(name, np.zeros(3, bool), looks_of([own])) for name, own in (("a", 0xFFFF << 40), ("b", 0xFFFF))
    )
    given = evidence(n=3, looks=looks_of([0xFFFF, 0xFF00FF00FF, 0xFFFF << 40]), seconds=seconds)
    assert leaked_image.find(given, 0.75).score.tolist() == [1, 0, 1]
    assert "--against" in leaked_image.lacks(evidence(n=3)) and not leaked_image.lacks(given)


def test_undecoded_images_are_judged_by_their_bytes_alone():
    looks = looks_of([0xFFFF, 0xFFFF])
    looks.seen[:] = False
    given = evidence(n=2, looks=looks, seconds=(Second("a", np.array([True, False]), looks_of([0xFFFF])),))
    score = leaked_image.find(given, 0.75).score
    assert score[0] == 1 and np.isnan(score[1])
