"""A hard negative is drawn by the softmax over the pairs of other groups, and by nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from truepair.losses import drawn_negatives
from truepair.losses.negatives import NONE
from truepair.losses.walk import TILE

SCALE = 3.0


def unit(rows: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def seeds(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**62), 2**62, (rows,), generator=torch.Generator().manual_seed(seed))


def test_the_draws_follow_the_softmax_without_the_own_groups() -> None:
    """20,000 draws of three rows against the formula; 5 of 7 columns are of other groups."""
    left, right, own = unit(3), unit(7, 1), (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2, 3]))
    counts = torch.zeros(3, 7)
    for step in range(200):
        many = left.repeat(100, 1), right, SCALE, [(own[0].repeat(100), own[1])]
        drawn = drawn_negatives(*many, (seeds(300, 2 * step), seeds(7, 2 * step + 1)), 1)
        counts += torch.nn.functional.one_hot(drawn.view(100, 3), 7).sum(dim=0)
    wanted = (SCALE * left @ right.T).masked_fill(own[0][:, None] == own[1], -torch.inf).softmax(dim=1)
    assert (counts[wanted == 0] == 0).all()
    spread = (wanted * (1 - wanted) / 20_000).sqrt()
    assert ((counts / 20_000 - wanted).abs() < 5 * spread + 1e-9).all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=60)
def test_no_pair_of_an_own_group_is_ever_drawn(batch: int, images: int, captions: int, seed: int) -> None:
    """Own is who shares the image or the caption; the row that has nobody else says so."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(images, (batch,), generator=draw)
    caption = torch.randint(captions, (batch,), generator=draw)
    one = seeds(batch, seed)
    own = [(image, image), (caption, caption)]
    found = drawn_negatives(unit(batch, 1), unit(batch, 2), 20.0, own, (one, one), 1)
    for i, j in enumerate(found.tolist()):
        if j == NONE:
            assert ((image == image[i]) | (caption == caption[i])).all()
        else:
            assert image[i] != image[j] and caption[i] != caption[j]


def test_neither_tiles_nor_the_order_of_columns_change_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, one, other, group = unit(20), unit(30, 1), seeds(20, 3), seeds(30, 4), torch.arange(30) % 11

    def drawn(order: Tensor) -> Tensor:
        own = [(group[:20], group[order])]
        return order[drawn_negatives(left, right[order], SCALE, own, (one, other[order]), 1)]

    whole = drawn(torch.arange(30))
    monkeypatch.setitem(TILE, "cpu", (7, 4))
    assert torch.equal(whole, drawn(torch.arange(30)))
    assert torch.equal(whole, drawn(torch.randperm(30, generator=torch.Generator().manual_seed(0))))
    assert not torch.equal(whole, drawn_negatives(left, right, SCALE, [(group[:20], group)], (one, other), 2))


def test_a_draw_is_made_in_full_precision_whatever_surrounds_it() -> None:
    """Features in a cone, as trained ones are: half precision would see most of them alike."""
    cone = normalize(unit(200) + 3 * unit(1, 9), dim=1)
    ask = cone, cone.flip(0), 500.0, [(torch.arange(200), torch.arange(200))], (seeds(200), seeds(200)), 1
    plain = drawn_negatives(*ask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn_negatives(*ask), plain)
