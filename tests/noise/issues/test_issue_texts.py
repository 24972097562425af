"""Captions that say nothing, say it of everything, or say it in another language."""

import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import evidence

from truepair.noise.issues.boilerplate import boilerplate_caption
from truepair.noise.issues.incomplete import incomplete_caption
from truepair.noise.issues.language import LANGUAGES, wrong_language

HOSTILE = ["", " ", "x" * 100_000, "שלום עולם כלב", "🐶🐱🎉", "a\x00b", "\u202eevil", "<script>alert(1)</script>"]


def score_of(issue, captions, **known):
    return issue.find(evidence(captions, **known), issue.threshold).score


def flagged(issue, captions, **known):
    return score_of(issue, captions, **known) >= np.float32(issue.threshold)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["Dog 1", "dog  2", " DOG 33 ", "cat", "", "CAT"]), max_size=3), st.integers(0, 6)
        ),
        max_size=30,
    )
)
def test_boilerplate_is_one_caption_over_many_images(pairs):
    captions, image = [texts for texts, _ in pairs], np.array([image for _, image in pairs], np.int64)
    images = defaultdict(set)
    plain = [[re.sub(r"\d+", "0", " ".join(text.lower().split())) for text in texts] for texts in captions]
    for texts, number in zip(plain, image.tolist(), strict=True):
        for text in texts:
            images[text].add(number)
    wanted = [max((1 - 1 / len(images[text]) for text in texts if text), default=np.nan) for texts in plain]
    np.testing.assert_allclose(score_of(boilerplate_caption, captions, image=image), wanted, rtol=1e-6)


def test_boilerplate_is_flagged_from_more_than_ten_images_on():
    for count in (10, 11):
        captions = [["Free shipping"]] * count + [["a dog on a beach"]]
        assert flagged(boilerplate_caption, captions).tolist() == [count > 10] * count + [False]
    copies = np.zeros(30, np.int64)
    assert not flagged(boilerplate_caption, [["one image, thirty times"]] * 30, image=copies).any()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", 0),
        ("1234", 0),
        ("IMG_1234.jpg", 0),
        ("DSC00123", 0),
        ("https://example.org/a/red/dog.jpg", 0),
        ("image of the photo", 0),
        ("🐶🐱", 0),
        ("dog", 1),
        ("the dog.png", 1),
        ("red-apple-on-table.jpg", 3),
        ("a red apple", 2),
        ("Boeing 747", 1),
        ("covid19 test", 2),
        ("红色的苹果在桌子上", 5),
        ("狗", 1),
        ("照片", 1),
        ("ม้า", 1),
        ("ビーチ", 2),
        ("小狗图片", 2),
        ("iPhone手机", 2),
        ("ein roter Apfel", 3),
    ],
)
def test_incomplete_captions_are_scored_by_the_words_that_say_something(caption, words):
    assert score_of(incomplete_caption, [[caption]])[0] == pytest.approx(1 / (1 + words))


def test_of_several_captions_the_best_counts_and_without_any_there_is_nothing_to_judge():
    score = score_of(incomplete_caption, [["dog", "a brown dog runs"], []])
    assert score[0] == pytest.approx(1 / 4) and np.isnan(score[1])


def test_a_caption_far_less_fitting_than_the_synthetic_one_is_incomplete():
    known = {
        "scale": 100.0,
        "cosine": np.array([0.2, 0.2, 0.2, 0.2], np.float32),
        "synthetic": np.array([0.25, 0.21, np.nan, 0.4], np.float32),
        "p_noise": np.array([0, 0, 0, 0.9], np.float32),
    }
    score = score_of(incomplete_caption, [["a brown dog runs fast"]] * 4, **known)
    assert score[0] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-4) and score[1] == pytest.approx(1 / (1 + np.e))
    assert score[2:] == pytest.approx([0.2, 0.2])  # without one, or a doubted pair


SENTENCES = {
    "en": "a dog is on the beach with a ball",
    "de": "ein Hund ist mit dem Ball am Strand und spielt",
    "fr": "un chien est sur la plage avec une balle",
    "es": "un perro en la playa con una pelota y su amigo",
    "ru": "собака на пляже с мячом и не одна",
    "el": "ένας σκύλος στην παραλία",
    "zh": "海滩上的狗",
    "ja": "ビーチにいる犬",
    "ar": "كلب على الشاطئ",
    "ko": "해변의 개",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_captions_in_another_language_than_most_are_flagged(language):
    others = [other for other in SENTENCES if other != language]
    captions = [[SENTENCES[language]]] * 12 + [[SENTENCES[other]] for other in others]
    found = flagged(wrong_language, captions)
    told = [not (language == "ja" and other == "zh") for other in others]  # Han letters are Japanese too
    assert not found[:12].any() and found[12:].tolist() == told


@pytest.mark.parametrize("language", SENTENCES)
def test_the_expected_language_can_be_named(language):
    captions = [[SENTENCES["en"]]] * 5 + [[SENTENCES[language]]]
    found = flagged(wrong_language, captions, language=language)
    assert not found[5] and found[:5].tolist() == [language != "en"] * 5


def test_short_captions_and_names_are_not_flagged():
    captions = [["a dog on the beach in the sun"]] * 9 + [["pomme rouge"], ["Playa de las Americas at the sea in June"]]
    captions += [["Кижи, an island in the lake of Onega"], ["12 34"], []]
    score = score_of(wrong_language, captions)
    assert not (score[:12] >= 0.5).any() and np.isnan(score[12:]).all()


@pytest.mark.parametrize(
    "caption",
    [
        "how do I do it",
        "I love you, I do",
        "what do I do to relax",
        "do not do as I do",
        "as seen on tv: no fee, as is, no tax",
        "me and my dog no no",
        "vitamin D, vitamin D deficiency",
        "Die Hard poster, Die Another Day",
        "van door handle",
    ],
)
def test_ordinary_english_is_not_taken_for_another_language(caption):
    assert not flagged(wrong_language, [[caption]], language="en")[0]


def test_a_language_is_expected_only_where_a_share_of_the_captions_tells_it():
    tags = [["red apple"]] * 1000 + [["La Paz, Los Angeles del mar"]] * 3
    assert not flagged(wrong_language, [*tags, ["the apple is on the table"]])[-1]
    spanish = [["la manzana está en la mesa"]] * 60
    assert flagged(wrong_language, [*tags, *spanish, ["the apple is on the table"]])[-1]


def test_no_language_of_latin_letters_is_told_by_a_letter_that_stands_alone():
    assert all(len(word) > 1 for script, text in LANGUAGES.values() if script == "LATIN" for word in text.split())


def test_every_language_has_a_script_and_small_words_of_that_script():
    import unicodedata

    for script, words in LANGUAGES.values():
        assert all(unicodedata.name(letter).startswith(script) for letter in words.replace(" ", ""))


@pytest.mark.parametrize(
    "issue", [boilerplate_caption, incomplete_caption, wrong_language], ids=lambda issue: issue.name
)
def test_hostile_captions_are_scored_like_any(issue):
    score = score_of(issue, [*[[text] for text in HOSTILE], HOSTILE, []])
    assert len(score) == len(HOSTILE) + 2 and ((score >= 0) & (score <= 1) | np.isnan(score)).all()
    assert np.isnan(score[-1])
    assert score_of(issue, [["dog"]]).shape == (1,) and score_of(issue, []).shape == (0,)
    assert np.isnan(score_of(issue, [[], []])).all()
