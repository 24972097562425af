"""Captions taken by the ten thousand say what they say one by one."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import string_lists

from truepair.noise.issues import text as module
from truepair.noise.issues.text import LONGEST, SCRIPTS, pieces, scripts, words

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LETTERS = {"LATIN": "a", "CYRILLIC": "ж", "HAN": "犬", "KANA": "かカ", "ARABIC": "س", "HANGUL": "개", "THAI": "ก"}


def taken(lists):
    """(row, text) of every piece's captions."""
    return [
        (row, text)
        for piece in pieces(string_lists(lists))
        for row, text in zip(piece.owner.tolist(), piece.texts.to_pylist(), strict=True)
    ]


@settings(max_examples=60)
@given(st.lists(st.lists(TEXT, max_size=3), max_size=9), st.integers(1, 4), st.integers(1, 12))
def test_every_caption_comes_once_with_its_row_cut_between_characters(lists, rows, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        patch.setattr(module, "LONGEST", longest)
        found = taken(lists)
    wanted = [
        (row, text.encode()[:longest].decode(errors="ignore")) for row, texts in enumerate(lists) for text in texts
    ]
    assert found == wanted


def test_a_caption_of_100_kb_costs_what_its_first_kilobyte_costs():
    found = taken([["é" * 50_000], ["short"], []])
    assert found == [(0, "é" * (LONGEST // 2)), (1, "short")]


def test_words_are_runs_of_letters_marks_and_digits_in_lower_case():
    texts = ["A dog, on 2 BEACHES!", "", "…", "naïve—CAFÉ 犬", "हिन्दी"]
    (piece,) = pieces(string_lists([texts]))
    owner, found = words(piece.texts)
    assert owner.tolist() == [0] * 5 + [3] * 3 + [4]
    assert found.to_pylist() == ["a", "dog", "on", "2", "beaches", "naïve", "café", "犬", "हिन्दी"]


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_letters_are_counted_by_the_script_in_their_unicode_names(texts):
    (piece,) = pieces(string_lists([texts]))
    counted = scripts(piece.texts)
    for row, text in zip(counted, texts, strict=True):
        assert row.sum() == len(text)
        for script in ("LATIN", "CYRILLIC", "GREEK", "HANGUL"):
            named = [unicodedata.name(c, "").split(" ")[0] for c in text if unicodedata.category(c)[0] == "L"]
            assert row[SCRIPTS.index(script)] == sum(
                n == script or (n, script) == ("FULLWIDTH", "LATIN") for n in named
            )


@pytest.mark.parametrize(("script", "letters"), LETTERS.items())
def test_scripts_are_told(script, letters):
    (piece,) = pieces(string_lists([[f"{letters} 12 🐶!", ""]]))
    (first, second) = scripts(piece.texts)
    assert first[SCRIPTS.index(script)] == len(letters) == first[1:].sum() and second.sum() == 0
    assert np.array_equal(first, scripts(piece.texts)[0]) and re.match(r"^[A-Z]+$", script)
