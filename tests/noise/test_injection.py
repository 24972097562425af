"""Injected noise is the noise that was asked for, the same for the same seed, and its truth is true."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
from truepair.noise import KINDS, Corruption, Kind, corrupt
from truepair.noise.injection import STOCK_SENTENCES, invented, truncated

rows_of_captions = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.text("abC é猫", min_size=1, max_size=6), min_size=1, max_size=3)),
    max_size=30,
)


def distinct(rows: int) -> tuple[list[list[str]], np.ndarray]:
    captions = [[f"picture number {row} of the set", f"the {row}th of many"] for row in range(rows)]
    return captions, np.arange(rows)


def truth_by_brute_force(captions: list[list[str]], images: np.ndarray, result: Corruption) -> list[bool]:
    truth = []
    for row, texts in enumerate(result.captions):
        fitting = {
            text.strip().casefold()
            for other, own in enumerate(captions)
            if images[other] == images[row]
            for text in own
        }
        truth.append(bool(result.chosen[row]) and not any(text.strip().casefold() in fitting for text in texts))
    return truth


@settings(deadline=None, max_examples=80)
@given(rows_of_captions, st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 3))
def test_the_truth_is_that_no_caption_of_a_chosen_row_fits_its_image(
    rows: list[tuple[int, list[str]]], kind: Kind, rate: float, seed: int
) -> None:
    images = np.array([image for image, _ in rows], dtype=np.int64)
    captions = [texts for _, texts in rows]
    result = corrupt(captions, images, kind, rate, seed)

    assert result.chosen.sum() == round(rate * len(rows))
    assert result.is_noise.tolist() == truth_by_brute_force(captions, images, result)
    for row in range(len(rows)):
        if not result.chosen[row]:
            assert result.captions[row] == captions[row] and result.source[row] == row
        elif result.source[row] >= 0:
            assert result.captions[row] == captions[result.source[row]]
    if rows:
        assert result.nominal == pytest.approx(result.chosen.mean())
        assert result.effective == pytest.approx(result.is_noise.mean())
    if kind in ("shuffle", "near"):
        assert sorted(result.source.tolist()) == list(range(len(rows)))
        if result.chosen.sum() > 1:
            assert (result.source[result.chosen] != np.flatnonzero(result.chosen)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_spoils_exactly_the_asked_fraction_of_distinct_pairs(kind: Kind) -> None:
    captions, images = distinct(500)
    before = [list(texts) for texts in captions]
    result = corrupt(captions, images, kind, 0.4, seed=0)
    assert (result.nominal, result.effective) == (0.4, 0.4)
    assert captions == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_noise_and_another_seed_another(kind: Kind) -> None:
    captions, images = distinct(200)
    first, again, other = (corrupt(captions, images, kind, 0.3, seed) for seed in (1, 1, 2))
    assert first.captions == again.captions and (first.source == again.source).all()
    assert (first.chosen != other.chosen).any()


def test_the_choice_of_rows_is_pinned_across_versions() -> None:
    captions, images = distinct(10)
    expected = np.random.Generator(np.random.Philox(7)).permutation(10)[:4]
    assert np.flatnonzero(corrupt(captions, images, "shuffle", 0.4, 7).chosen).tolist() == sorted(expected.tolist())


def test_a_lower_rate_chooses_a_part_of_the_rows_of_a_higher_one_for_all_kinds() -> None:
    captions, images = distinct(100)
    for kind in KINDS:
        low, high = (corrupt(captions, images, kind, rate, 3).chosen for rate in (0.2, 0.6))
        assert (high | ~low).all()
        assert (high == corrupt(captions, images, "shuffle", 0.6, 3).chosen).all()


def test_a_shuffled_caption_of_the_same_image_or_with_the_same_words_is_no_noise() -> None:
    captions = [["a red heart"], ["heart symbol"], ["A Red Heart "], ["a red heart"]]
    same_image = corrupt(captions[:2], np.array([5, 5]), "shuffle", 1.0, 0)
    assert (same_image.nominal, same_image.effective) == (1.0, 0.0)
    same_words = corrupt(captions[2:], np.array([5, 6]), "shuffle", 1.0, 0)
    assert (same_words.nominal, same_words.effective) == (1.0, 0.0)


def test_one_chosen_row_has_nobody_to_exchange_with_and_keeps_its_captions() -> None:
    captions, images = distinct(10)
    for kind in get_args(Kind)[:2]:
        result = corrupt(captions, images, kind, 0.1, 0)
        assert (result.nominal, result.effective) == (0.1, 0.0)
        assert result.captions == captions


def test_near_exchanges_captions_that_share_words_while_shuffle_does_not() -> None:
    subjects = ["cat", "lorry", "violin", "mountain", "birthday cake", "submarine", "teacup", "palm tree"]
    colours = ["red", "blue", "green", "black", "white", "purple", "orange", "pink", "grey", "brown"]
    captions = [[f"a {colour} {subject}"] for subject in subjects for colour in colours]
    images = np.arange(len(captions))

    def share_a_word(result: Corruption) -> float:
        same_subject = result.source // len(colours) == images // len(colours)
        return float(np.mean(same_subject | (result.source % len(colours) == images % len(colours))))

    near = corrupt(captions, images, "near", 1.0, 0)
    assert near.effective == 1.0
    assert share_a_word(near) > 0.95
    assert share_a_word(corrupt(captions, images, "shuffle", 1.0, 0)) < 0.4


def test_near_by_embeddings_pairs_nearest_first_as_a_plain_greedy_search() -> None:
    random = np.random.default_rng(0)
    captions, images = distinct(40)
    vectors = random.normal(size=(40, 5))
    result = corrupt(captions, images, "near", 1.0, 0, embeddings=vectors)

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    free, partner = set(range(40)), {}
    while free:
        first, second = max(((i, j) for i in free for j in free if i < j), key=lambda pair: similarity[pair])
        partner[first], partner[second] = second, first
        free -= {first, second}
    assert result.source.tolist() == [partner[row] for row in range(40)]


def test_near_of_more_rows_than_a_block_still_finds_neighbours_and_moves_everyone() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(600, 8))
    group = np.arange(5001) % 600
    vectors = centres[group] + 0.01 * random.normal(size=(5001, 8))
    vectors[17] = np.nan
    vectors[18, 0] = np.inf
    captions, images = distinct(5001)
    result = corrupt(captions, images, "near", 1.0, 0, embeddings=vectors)
    assert (result.source != images).all() and len(set(result.source.tolist())) == 5001
    assert np.mean(group[result.source] == group) > 0.8


def test_near_does_not_exchange_equal_captions_while_others_are_left() -> None:
    captions = [["a dog"], ["a dog"], ["a dog barks"], ["a dog barks"]]
    assert corrupt(captions, np.arange(4), "near", 1.0, 0).effective == 1.0


def test_near_moves_the_captions_of_rows_that_are_all_alike_too() -> None:
    captions, _ = distinct(7)
    result = corrupt(captions, np.zeros(7, dtype=np.int64), "near", 1.0, 0)
    assert (result.source != np.arange(7)).all()
    assert (result.nominal, result.effective) == (1.0, 0.0)


def test_truncate_keeps_the_first_third_of_words_or_half_of_a_single_word() -> None:
    assert truncated("one two three four five six seven") == "one two"
    assert truncated("two words") == "two"
    assert truncated(" lonely ") == "lon"
    assert truncated("x") == "x"
    result = corrupt([["x"], ["two words", "two"]], np.array([0, 1]), "truncate", 1.0, 0)
    assert result.effective == 0.0


def test_boilerplate_leaves_one_stock_sentence_to_each_chosen_row() -> None:
    captions, images = distinct(300)
    result = corrupt(captions, images, "boilerplate", 0.5, 0)
    written = [result.captions[row] for row in np.flatnonzero(result.chosen)]
    assert {len(texts) for texts in written} == {1}
    assert {texts[0] for texts in written} == set(STOCK_SENTENCES)
    assert (result.source[result.chosen] == -1).all()


def test_foreign_takes_the_given_captions_and_invents_where_there_are_none() -> None:
    captions, images = [["a dog"], ["a cat"], ["猫"]], np.arange(3)
    result = corrupt(captions, images, "foreign", 1.0, 0, foreign=[["ein Hund", "der Hund"], [], []])
    assert result.captions == [["ein Hund", "der Hund"], [invented("a cat")], ["猫"]]
    assert result.is_noise.tolist() == [True, True, False]


def test_the_invented_language_is_a_one_to_one_spelling_without_fixed_letters() -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    assert sorted(invented(alphabet)) == list(alphabet)
    assert all(old != new for old, new in zip(alphabet, invented(alphabet), strict=True))
    assert {invented(vowel) for vowel in "aeiou"} == set("aeiou")
    assert invented("Top 10!") == invented("top 10!").capitalize()


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"kind": "typo"}, "no noise of the kind 'typo': choose one of shuffle, near"),
        ({"rate": 1.5}, "noise rate 1.5: give a fraction"),
        ({"rate": float("nan")}, "noise rate nan: give a fraction"),
        ({"seed": -1}, "seed -1: give a number"),
        ({"images": np.arange(3)}, "3 image ids for 4 rows"),
        ({"foreign": [["x"]]}, "1 foreign captions for 4 rows"),
        ({"embeddings": np.zeros((5, 2))}, "5 embeddings for 4 rows"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(wrong: dict, line: str) -> None:
    captions, images = distinct(4)
    arguments = {"captions": captions, "images": images, "kind": "shuffle", "rate": 0.5, "seed": 0} | wrong
    with pytest.raises(UserError, match=line):
        corrupt(**arguments)
