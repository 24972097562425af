"""Captions to token ids: trimmed where that is harmless, K of a row distinct where it has K."""

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.pairs.text import MAX_CHARACTERS, draw_captions, first_captions, tokenize, trim


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
    drawn = draw_captions(captions, np.arange(len(counts)), wanted, seed, 0)
    assert len(drawn) == len(counts) * wanted
    for row, count in enumerate(counts):
        mine = drawn[row * wanted : (row + 1) * wanted]
        assert set(mine) <= set(captions[row]) and len(set(mine)) == min(count, wanted)


@pytest.mark.parametrize("position", range(3))
def test_every_caption_is_drawn_as_often_in_the_long_run(position: int) -> None:
    rows = np.arange(3000)
    drawn = draw_captions([["a", "b", "c"]] * 3000, rows, 3, 0, 5)[position::3]
    assert all(abs(drawn.count(text) - 1000) < 130 for text in "abc")  # 5 standard deviations


def test_another_epoch_draws_other_captions() -> None:
    rows = np.arange(300)
    first, second = (draw_captions([["a", "b"]] * 300, rows, 1, 0, epoch) for epoch in (0, 1))
    assert 100 < sum(a != b for a, b in zip(first, second, strict=True)) < 200


def test_the_first_captions_are_always_the_same_and_start_again_where_a_row_has_fewer() -> None:
    assert first_captions([["a", "b", "c"], ["d"]], 1) == ["a", "d"]
    assert first_captions([["a", "b", "c"], ["d"]], 2) == ["a", "b", "d", "d"]
