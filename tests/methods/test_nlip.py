"""NLIP: the smoothed target of §2 in both directions, synthetic captions believed, the captioner trained beside it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.losses import reference
from truepair.methods.base import Features, Loss, Pairs
from truepair.methods.nlip import Nlip, NlipOptions, log_odds, smoothed

# Worked in plain NumPy from the paper's formulas, independent of this project's code; one direction, scale 1/0.07.
COSINES = [[0.60, 0.10, 0.30, -0.10], [0.05, 0.70, 0.00, 0.15], [0.45, 0.20, 0.20, 0.10], [-0.05, 0.25, 0.10, 0.55]]
W = [0.05, 0.1, 0.45, 0.02]
INFO_NCE = [0.01449412778447728, 0.0005249797139527619, 3.6324947583262337, 0.015448046661177228]
SMOOTHED = [0.37163698492733444, 0.9052868844758575, 3.311066186897662, 0.1440194752326058]
LOG_ODDS = [0.0002561018870757113, 1.9448608649354228e-05, 2.401369028275447, 0.00010589904923313109]
SCALE = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)


def double(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(batch: int, captions: int, seed: int) -> Features:
    def unit(rows: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return normalize(torch.randn(rows, 6, generator=rng, dtype=torch.float64), dim=1).requires_grad_()

    return Features(unit(batch, 2 * seed), unit(batch * captions, 2 * seed + 1))


def loss(features: Features, p_noise: Tensor, synthetic: Tensor | None = None, **options: Any) -> Loss:
    batch = len(features.image)
    known = Pairs(torch.arange(batch), p_noise, {}, epoch=2.0, epochs=9, synthetic=synthetic)
    return Nlip(NlipOptions(**({"captioning": 0.0} | options))).loss(features, SCALE, None, known)


def by_matrices(features: Features, w: Tensor) -> Tensor:
    """L_ITC with the smoothed targets written out in full; w (B·K,) of each caption."""
    image, text = features.image, features.text
    b, k = len(image), len(text) // len(image)
    logits = SCALE * image @ text.T
    own = torch.eye(b, dtype=torch.bool).repeat_interleave(k, dim=1)
    w_image = w.view(b, k).mean(dim=1, keepdim=True)
    of_image = torch.where(own, (1 - w_image) / k, w_image / ((b - 1) * k))
    of_text = torch.where(own.T, (1 - w)[:, None], w[:, None] / (b - 1))
    i2t, t2i = reference.cross_entropy(logits, of_image), reference.cross_entropy(logits.T, of_text)
    return (i2t + t2i.view(b, k).mean(dim=1)).mean() / 2


def clip_rows(features: Features) -> Tensor:
    return by_rows(features, torch.ones(len(features.text), dtype=torch.bool))


def by_rows(features: Features, raw: Tensor) -> Tensor:
    """CLIP's loss of each pair's raw captions among all captions of the batch, (B,)."""
    logits = (SCALE * features.image @ features.text.T).detach()
    b, k = len(features.image), len(features.text) // len(features.image)
    i2t, t2i = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    rows = []
    for i in range(b):
        mine = [j for j in range(i * k, (i + 1) * k) if raw[j]]
        rows.append(-sum(i2t[i, j] + t2i[i, j] for j in mine) / (2 * len(mine)))
    return torch.stack(rows)


def test_its_two_forms_are_those_worked_by_hand() -> None:
    s = double(COSINES) / 0.07
    w, nce = double(W), -s.log_softmax(dim=1).diagonal()
    rest = (s.sum(dim=1) - s.diagonal()) / 3
    torch.testing.assert_close(nce, double(INFO_NCE), rtol=1e-9, atol=0)
    torch.testing.assert_close(smoothed(nce, s.diagonal(), rest, w), double(SMOOTHED), rtol=1e-9, atol=0)
    torch.testing.assert_close(log_odds(nce, w, 4), double(LOG_ODDS), rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=20)
@given(batch=st.integers(2, 12), captions=st.integers(1, 3), seed=st.integers(0, 99), smoothing=st.floats(0, 0.9))
def test_it_is_cross_entropy_with_the_smoothed_targets_gradients_too(
    batch: int, captions: int, seed: int, smoothing: float
) -> None:
    features = drawn(batch, captions, seed)
    p_noise = torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = loss(features, p_noise, smoothing=smoothing).total
    theirs = by_matrices(features, smoothing * p_noise.repeat_interleave(captions))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    leaves = [features.image, features.text, SCALE]
    for one, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11)


def test_without_doubt_it_is_clip() -> None:
    features = drawn(7, 2, seed=3)
    torch.testing.assert_close(loss(features, torch.zeros(7).double()).total, clip_rows(features).mean())


def test_a_doubted_pair_is_pulled_together_less_and_the_others_apart_no_more() -> None:
    """∂L/∂s_ii = p_ii - (1-w): it stops at p_ii = 1-w, where CLIP's goes on to 1."""
    features = drawn(5, 1, seed=1)
    pulls = []
    for doubt in (0.0, 0.5, 1.0):
        p_noise = torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(2), doubt)
        gradient = torch.autograd.grad(loss(features, p_noise).total, features.image)[0][2]
        pulls.append(-(gradient @ features.text[2]).item())
    assert pulls[0] > pulls[1] > pulls[2]


def test_a_synthetic_caption_is_doubted_as_its_pair_and_stays_out_of_the_loss_the_noise_model_sees() -> None:
    features, doubt = drawn(6, 2, seed=5), torch.full((6,), 0.8, dtype=torch.float64)
    synthetic = torch.tensor([False, True] * 5 + [True, True])
    found = loss(features, doubt, synthetic)
    torch.testing.assert_close(found.total, by_matrices(features, torch.full((12,), 0.5 * 0.8, dtype=torch.float64)))
    torch.testing.assert_close(
        found.per_pair[:5], by_rows(features, ~synthetic | torch.tensor([False] * 10 + [True] * 2))[:5]
    )
    torch.testing.assert_close(found.logs["synthetic"], torch.tensor(7 / 12))


def test_the_noise_model_is_given_clips_loss_whatever_is_smoothed() -> None:
    features = drawn(9, 2, seed=2)
    found = loss(features, torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(found.per_pair, clip_rows(features))


def test_log_odds_with_extreme_losses_stays_finite_with_its_gradient() -> None:
    losses = double([0.0, 1e-12, 1e-3, 20.0, 700.0]).requires_grad_()
    w = double([0.5, 0.0, 0.3, 0.0, 0.5])
    found = log_odds(losses, w, 32)
    found.sum().backward()
    assert found.isfinite().all() and losses.grad is not None and losses.grad.isfinite().all()
    assert found[1] == 0 and found[3] == 0  # no doubt, no lesson


def test_in_the_log_odds_form_a_pair_without_doubt_is_clips() -> None:
    features = drawn(6, 1, seed=6)
    doubt = double([0.0, 0.3, 0.0, 0.9, 0.0, 0.0])
    s = (SCALE * features.image @ features.text.T).detach()
    wanted = []
    for logits in (s, s.T):
        own, others = logits.diagonal().exp(), logits.exp().sum(dim=1) - logits.diagonal().exp()
        w = 0.5 * doubt
        odds = -(((1 - w) * own) / ((1 - w) * own + w / 5 * others)).log()
        wanted.append(torch.where(doubt > 0, odds, -logits.log_softmax(dim=1).diagonal()))
    torch.testing.assert_close(loss(features, doubt, form="log-odds").total, sum(wanted).mean() / 2)


def test_log_odds_takes_one_caption_an_image() -> None:
    with pytest.raises(UserError, match="one caption"):
        loss(drawn(4, 2, seed=0), torch.zeros(4).double(), form="log-odds")


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"captioning": -1.0},
        {"concepts": 0},
        {"layers": -1},
        {"concepts_per_image": 33},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        NlipOptions(**options)


def test_the_captioner_learns_from_raw_captions_as_far_as_they_are_believed() -> None:
    features, doubt = drawn(4, 2, seed=4), double([0.0, 0.25, 1.0, 0.5])
    nll = double([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    features.extra["nll"] = nll
    synthetic = torch.tensor([False, True, False, False, False, False, True, True])
    itc = loss(features, doubt, synthetic).total
    found = loss(features, doubt, synthetic, captioning=2.0)
    weight = double([1, 0, 0.75, 0.75, 0, 0, 0, 0])
    torch.testing.assert_close(found.total - itc, 2 * (weight * nll).sum() / weight.sum())
