"""Captions to token ids: trimmed where that is harmless, K of a row distinct where it has K."""

import subprocess
import sys
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.pairs import draws
from truepair.pairs.text import (
    MAX_CHARACTERS,
    Completion,
    caption_ids,
    draw_captions,
    first_captions,
    tokenize,
    trim,
    wanted_synthetic,
)


def both(count: int, wanted: int) -> np.ndarray:
    return wanted_synthetic(np.arange(count), wanted)


def drawn_texts(raw: list[list[str]], wanted: int, seed: int, epoch: int, more: Any = None) -> list[str]:
    return draw_captions(raw, np.arange(len(raw)), both(len(raw), wanted), seed, epoch, more)[0]


def first_texts(raw: list[list[str]], wanted: int, more: Any = None) -> list[str]:
    return first_captions(raw, both(len(raw), wanted), more)[0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 24), min_size=1, max_size=6), st.integers(8, 24))
def test_trimming_keeps_every_token_and_a_length_that_is_a_multiple_of_8(lengths: list[int], context: int) -> None:
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, : min(length, context)] = 1 + row
    trimmed = trim(tokens, 0)
    assert trimmed.shape[1] % 8 == 0 or trimmed.shape[1] == context
    assert trimmed.sum() == tokens.sum() and (trimmed == tokens[:, : trimmed.shape[1]]).all()
    assert trimmed.shape[1] - max(1, *(min(n, context) for n in [0, *lengths])) < 8


def test_padding_inside_a_row_is_no_end() -> None:
    assert trim(torch.tensor([[0] * 9 + [5] + [0] * 22]), 0).shape == (1, 16)


def test_tokens_are_open_clips_own() -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    texts = ["a red square", "a small blue circle to the left of a large green star"]
    full = tokenizer(texts)
    ours = tokenize(tokenizer, texts, 0)
    assert ours.shape == (2, 16) and (full[:, :16] == ours).all() and not full[:, 16:].any()
    assert (tokenize(tokenizer, texts, None) == full).all()


def test_a_hostile_caption_costs_no_more_than_its_bounded_head() -> None:
    seen: list[int] = []

    def tokenizer(texts: list[str]) -> torch.Tensor:
        seen.extend(map(len, texts))
        return torch.ones(len(texts), 8, dtype=torch.int64)

    tokenize(tokenizer, ["x" * 1_000_000, "short"], 0)
    assert seen == [MAX_CHARACTERS, 5]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 99))
def test_captions_of_a_row_are_distinct_as_far_as_it_has_them(counts: list[int], wanted: int, seed: int) -> None:
    captions = [[f"{row}-{i}" for i in range(count)] for row, count in enumerate(counts)]
    drawn = drawn_texts(captions, wanted, seed, 0)
    assert len(drawn) == len(counts) * wanted
    for row, count in enumerate(counts):
        mine = drawn[row * wanted : (row + 1) * wanted]
        assert set(mine) <= set(captions[row]) and len(set(mine)) == min(count, wanted)


@pytest.mark.parametrize("position", range(3))
def test_every_caption_is_drawn_as_often_in_the_long_run(position: int) -> None:
    drawn = drawn_texts([["a", "b", "c"]] * 3000, 3, 0, 5)[position::3]
    assert all(abs(drawn.count(text) - 1000) < 130 for text in "abc")  # 5 standard deviations


def test_another_epoch_draws_other_captions() -> None:
    first, second = (drawn_texts([["a", "b"]] * 300, 1, 0, epoch) for epoch in (0, 1))
    assert 100 < sum(a != b for a, b in zip(first, second, strict=True)) < 200


def test_the_first_captions_are_always_the_same_and_start_again_where_a_row_has_fewer() -> None:
    assert first_texts([["a", "b", "c"], ["d"]], 1) == ["a", "d"]
    assert first_texts([["a", "b", "c"], ["d"]], 2) == ["a", "b", "d", "d"]
    assert first_texts([["a", "b"], ["d"]], 3, [["x", "y", "z"], []]) == ["a", "x", "y", "d", "d", "d"]


LISTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(LISTS, st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_the_first_caption_is_a_raw_one_and_the_others_synthetic_as_far_as_a_row_has_both(
    counts: list[tuple[int, int]], wanted: int, seed: int, first: bool
) -> None:
    raw = [[f"raw {row}-{i}" for i in range(count)] for row, (count, _) in enumerate(counts)]
    synthetic = [[f"synthetic {row}-{i}" for i in range(count)] for row, (_, count) in enumerate(counts)]
    chosen = both(len(counts), wanted)
    if first:
        drawn, is_synthetic = first_captions(raw, chosen, synthetic)
    else:
        drawn, is_synthetic = draw_captions(raw, np.arange(len(counts)), chosen, seed, 0, synthetic)
    assert [text.startswith("synthetic") for text in drawn] == is_synthetic.tolist()
    for row, (n_raw, n_synthetic) in enumerate(counts):
        mine = drawn[row * wanted : (row + 1) * wanted]
        if n_raw and n_synthetic:
            assert mine[0] in raw[row] and set(mine[1:]) <= set(synthetic[row])
            assert len(set(mine[1:])) == min(n_synthetic, wanted - 1)
        else:
            assert set(mine) <= set(raw[row] + synthetic[row]) and len(set(mine)) == min(n_raw + n_synthetic, wanted)


def test_with_one_caption_a_row_synthetic_ones_change_nothing_where_there_are_raw_ones() -> None:
    raw = [["a", "b", "c"]] * 300
    assert drawn_texts(raw, 1, 0, 4) == drawn_texts(raw, 1, 0, 4, [["x"]] * 300)


def test_raw_and_synthetic_captions_are_drawn_independently() -> None:
    drawn = drawn_texts([["a", "b"]] * 4000, 2, 0, 0, [["x", "y"]] * 4000)
    together = [drawn[::2][i] + drawn[1::2][i] for i in range(4000)]
    assert all(abs(together.count(pair) - 1000) < 140 for pair in ("ax", "ay", "bx", "by"))  # 5 standard deviations


@pytest.mark.parametrize("p_noise", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_sampling_takes_a_synthetic_caption_as_often_as_the_pair_is_believed_noisy(p_noise: float) -> None:
    rows, believed = np.arange(100), np.full(100, p_noise, np.float32)
    wanted = [wanted_synthetic(rows, 2, "sample", believed, seed=7, epoch=epoch) for epoch in range(60)]
    trials = 60 * 100
    for k in range(2):
        share = np.mean([of_epoch[:, k] for of_epoch in wanted])
        assert abs(share - p_noise) <= 4.5 * np.sqrt(p_noise * (1 - p_noise) / trials)
    per_row = np.sum(wanted, axis=(0, 2))  # of 120 draws each: rows have their own, not one for all
    assert np.abs(per_row - 120 * p_noise).max() <= 5 * np.sqrt(120 * p_noise * (1 - p_noise))


def test_the_samples_of_a_row_are_independent_of_each_other_and_of_which_caption_is_drawn() -> None:
    rows = np.arange(8000)
    wanted = wanted_synthetic(rows, 2, "sample", np.full(8000, 0.5), seed=1, epoch=3)
    drawn = draw_captions([["a", "b"]] * 8000, rows, wanted, 1, 3, [["x", "y"]] * 8000)[0]
    together = [first + second for first, second in zip(drawn[::2], drawn[1::2], strict=True)]
    for one, other in (("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")):
        assert abs(together.count(one + other) - 500) < 110  # 1 in 16, 5 standard deviations
        assert abs(together.count(other + one) - 500) < 110


def test_replacing_begins_at_the_threshold_and_takes_every_caption_of_the_row() -> None:
    p_noise = np.array([0.0, 0.49, 0.5, 1.0, np.nan], np.float32)
    wanted = wanted_synthetic(np.arange(5), 3, "replace", p_noise, replace_above=0.5)
    assert wanted.tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3, [False] * 3]
    assert not wanted_synthetic(np.arange(5), 3, "sample", np.full(5, np.nan)).any()


MODES = st.sampled_from(("both", "sample", "replace"))


@settings(deadline=None, max_examples=60)
@given(LISTS, st.integers(1, 4), st.integers(0, 99), MODES, st.booleans())
def test_no_mode_invents_loses_or_repeats_a_caption(
    counts: list[tuple[int, int]], wanted: int, seed: int, mode: Completion, first: bool
) -> None:
    raw = [[f"raw {row}-{i}" for i in range(count)] for row, (count, _) in enumerate(counts)]
    synthetic = [[f"synthetic {row}-{i}" for i in range(count)] for row, (_, count) in enumerate(counts)]
    rows = np.arange(len(counts))
    chosen = wanted_synthetic(rows, wanted, mode, draws.uniform(rows, 1, seed)[:, 0], seed=seed)
    if first:
        drawn, is_synthetic = first_captions(raw, chosen, synthetic)
    else:
        drawn, is_synthetic = draw_captions(raw, rows, chosen, seed, 0, synthetic)
    assert [text.startswith("synthetic") for text in drawn] == is_synthetic.tolist()
    for row, (n_raw, n_synthetic) in enumerate(counts):
        mine, kinds = drawn[row * wanted : (row + 1) * wanted], is_synthetic[row * wanted : (row + 1) * wanted]
        assert set(mine) <= set(raw[row] + synthetic[row])
        assert not kinds.any() if not n_synthetic else kinds.all() if not n_raw else (kinds == chosen[row]).all()
        for kind, known in ((False, n_raw), (True, n_synthetic)):
            taken = [text for text, own in zip(mine, kinds.tolist(), strict=True) if own is kind]
            assert len(set(taken)) == min(known, len(taken))
            if first:
                assert taken == [(synthetic if kind else raw)[row][i % known] for i in range(len(taken))]


def test_a_rows_captions_do_not_depend_on_its_company() -> None:
    rows, p_noise = np.arange(40), np.linspace(0, 1, 40)
    raw, synthetic = [["a", "b", "c"]] * 40, [["x", "y"]] * 40
    whole = draw_captions(raw, rows, wanted_synthetic(rows, 3, "sample", p_noise, seed=5, epoch=2), 5, 2, synthetic)[0]
    for part in (rows[:13], rows[13:]):
        wanted = wanted_synthetic(part, 3, "sample", p_noise[part], seed=5, epoch=2)
        mine = draw_captions(raw[: len(part)], part, wanted, 5, 2, synthetic[: len(part)])[0]
        assert mine == [whole[3 * row + k] for row in part.tolist() for k in range(3)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1, max_size=12))
def test_caption_ids_are_equal_where_the_texts_are(texts: list[str]) -> None:
    ids = caption_ids(texts)
    assert ids.shape == (len(texts),) and ids.dtype == torch.int64
    for i, text in enumerate(texts):
        assert [int(ids[i]) == int(other) for other in ids] == [text == other for other in texts]


def test_caption_ids_are_the_same_in_every_process() -> None:
    code = "from truepair.pairs.text import caption_ids; print(*caption_ids(['a dog', 'ein Hünd']).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == caption_ids(["a dog", "ein Hünd"]).tolist()
