"""A vocabulary of concepts is the most frequent nouns and noun phrases of captions, whoever wrote them."""

import importlib.util
import random
import string

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
from truepair.pairs import lexicon, nouns
from truepair.pairs.columns import StringLists, open_column, write_parquet
from truepair.pairs.lexicon import MODIFIER, NOUN, OTHER, look_up
from truepair.pairs.nouns import frequent_concepts

missing = [name for name in ("textblob", "lemminflect") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")


def concepts(*captions: str, most: int = 10_000, least: int = 1) -> list[str]:
    return frequent_concepts([[caption] for caption in captions], most=most, least=least)


@pytest.mark.parametrize(
    ("caption", "wanted"),
    {
        "A dog runs quickly across the green grass.": {"dog", "grass"},
        "The man gives a book to his children": {"man", "book", "child"},
        "red and very large, of the and or 1984 ...": set(),
        "DOGS! Cats? (Geese)": {"dog", "cat", "goose"},
        "the dog's bone": {"dog", "bone"},
        "two men wearing pants and glasses": {"man", "pants", "glasses"},
        "stock photo picture of a pizza, click to download": {"pizza"},
        "skateboard and giraffe": {"skateboard", "giraffe"},
        "grinning_cat": {"cat"},
    }.items(),
)
def test_nouns_are_found_and_made_singular(caption: str, wanted: set[str]) -> None:
    assert {name for name in concepts(caption) if " " not in name} == wanted


def test_a_word_is_what_it_is_most_often() -> None:
    wanted = {"dog": NOUN, "face": NOUN, "red": MODIFIER, "smiling": MODIFIER, "run": OTHER, "the": OTHER}
    assert {word: look_up(word).kind for word in wanted} == wanted
    assert [look_up(word).lemma for word in ("buses", "women", "fries", "sheep")] == ["bus", "woman", "fries", "sheep"]
    assert {look_up(word).kind for word in ("a", "x", "qwrtz", "dog" * 20)} == {OTHER}


def test_a_concept_counts_once_for_each_caption_and_ties_go_by_the_alphabet() -> None:
    captions = ["cat cat cat cat", "zebra", "dog", "dogs and a dog", "apple"]
    assert concepts(*captions) == ["dog", "apple", "cat", "zebra"]
    assert concepts(*captions, least=2) == ["dog"]
    assert concepts(*captions, most=2) == ["dog", "apple"]
    assert frequent_concepts([["a cat", "two cats"], [], ["the dog"]], least=2) == ["cat"]


def background(n: int = 400) -> list[str]:
    """Captions in which every adjective goes with every noun."""
    chosen = random.Random(0)
    colours, things = ["red", "green", "small", "large"], ["car", "dog", "house", "apple", "tree", "hat"]
    return [f"a {chosen.choice(colours)} {chosen.choice(things)} by the {chosen.choice(things)}" for _ in range(n)]


def test_words_that_go_together_are_a_phrase_and_chance_neighbours_are_none() -> None:
    captions = (
        background() + ["a red car"] * 40 + ["a fire truck"] * 10 + ["two fire trucks"] * 5 + ["fire", "truck"] * 3
    )
    found = concepts(*captions, least=2)
    assert [name for name in found if " " in name] == ["fire truck"]
    assert {"truck", "fire"} <= set(found)


def test_three_words_are_a_phrase_and_its_fragments_are_not() -> None:
    captions = background() + ["a hot air balloon over the house"] * 10 + ["a balloon"] * 20 + ["hot"] * 10
    assert [name for name in concepts(*captions, least=2) if " " in name] == ["hot air balloon"]


@pytest.mark.parametrize("caption", ["fire. truck", "fire, truck", "fire - truck", "fire and truck", "fire 1 truck"])
def test_a_phrase_does_not_go_across_what_parts_its_words(caption: str) -> None:
    assert not [name for name in concepts(*background(), *[caption] * 10) if " " in name]


@pytest.mark.parametrize("caption", ["ice cream", "Ice Cream", "ice_cream", "ice-cream", "ICE  CREAMS"])
def test_a_phrase_is_found_however_it_is_written(caption: str) -> None:
    assert "ice cream" in concepts(*background(), *[caption] * 5)


def test_words_of_two_captions_are_no_phrase() -> None:
    assert concepts(*["fire", "truck"] * 5) == ["fire", "truck"]


def test_a_column_gives_what_its_lists_give(tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [[caption] if i % 3 else [caption, "an ice cream"] for i, caption in enumerate(background())] + [[]]
    file = tmp_path_factory.mktemp("column") / "caption.parquet"
    write_parquet(file, {"caption": pa.array(rows, pa.list_(pa.string()))})
    column = open_column(file, "caption")
    assert isinstance(column, StringLists)
    assert frequent_concepts(column) == frequent_concepts(rows) != []


def test_pieces_and_their_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = background() + ["a hot air balloon"] * 10
    whole = concepts(*captions, least=2)
    monkeypatch.setattr(nouns, "PIECE", 7)
    assert concepts(*captions[::-1], least=2) == whole


def test_beyond_the_limit_the_rarest_phrases_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = background(200) + ["a hot air balloon"] * 60
    monkeypatch.setattr(nouns, "PHRASES", 10)
    assert "hot air balloon" in concepts(*captions, least=2)
    monkeypatch.setattr(nouns, "PHRASES", 0)
    assert not [name for name in concepts(*captions, least=2) if " " in name]


def test_hostile_captions_do_no_harm() -> None:
    hostile = ["", " ", "\x00\x1b[31m", "dog" * 400_000, "dog " * 300_000, "\udcff cat", "🙂" * 9, "犬がいる"]
    hostile += ["''’’s's", "-_- - --", "a" * 1_000_000, "ﬁre truck", "\u202edog", "ὈΔΥΣΣΕΎΣ", "x-ray\ncat\r\ndog"]
    assert set(concepts(*hostile)) >= {"dog", "cat"}
    assert concepts("") == concepts() == frequent_concepts([[]]) == []


def test_broken_utf8_in_a_column_does_no_harm(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("column") / "caption.parquet"
    text = pa.array([b"a dog \xff\xfe cat", b"\xc3"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 2, text.buffers())
    write_parquet(file, {"caption": pa.ListArray.from_arrays([0, 1, 2], strings)})
    column = open_column(file, "caption")
    assert isinstance(column, StringLists)
    assert set(frequent_concepts(column, least=1)) == {"cat", "dog"}


@settings(max_examples=50)
@given(st.lists(st.text(st.sampled_from(string.printable + "犬é’\x00 dogcat"), max_size=60), max_size=6))
def test_any_text_gives_distinct_lower_case_names(captions: list[str]) -> None:
    found = concepts(*captions)
    assert len(set(found)) == len(found)
    assert all(name == name.lower() and name.isprintable() and 1 <= len(name.split()) <= 3 for name in found)


def test_without_the_word_lists_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lexicon.look_up.cache_clear()
    lexicon._tags.cache_clear()
    with pytest.raises(UserError, match="truepair\[concepts\]"):
        concepts("a dog")
