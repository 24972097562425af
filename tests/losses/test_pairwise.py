"""The pairwise primitive equals open_clip's losses, the plain matrices of reference.py and figures worked in NumPy."""

from collections.abc import Callable, Sequence

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from truepair.losses import Dense, Own, pairwise, reference, sigmoid_rows, softmax_rows, weighted_mean

CLOSE = {"rtol": 1e-7, "atol": 1e-12}
Unit = Callable[..., Tensor]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def same_with_gradients(ours: Tensor, theirs: Tensor, leaves: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a sum in which every row has another weight."""
    torch.testing.assert_close(ours, theirs, **CLOSE)
    rows = torch.linspace(0.5, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    got = torch.autograd.grad((ours * rows).sum(), leaves)
    wanted = torch.autograd.grad((theirs * rows).sum(), leaves)
    torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_the_mean_of_both_softmax_directions_is_open_clips_clip_loss(unit: Unit, batch: int) -> None:
    image, text, scale = unit(batch, 1), unit(batch, 2), number(14.3)
    ours = weighted_mean((softmax_rows(image, text, scale) + softmax_rows(text, image, scale)) / 2)
    same_with_gradients(ours, open_clip.loss.ClipLoss()(image, text, scale), [image, text, scale])


@pytest.mark.parametrize("batch", [1, 2, 17])
@pytest.mark.parametrize("direction", ["image to text", "text to image"])
def test_the_mean_of_the_sigmoid_rows_is_open_clips_siglip_loss(unit: Unit, batch: int, direction: str) -> None:
    image, text, scale, bias = unit(batch, 1), unit(batch, 2), number(10.0), number(-9.5)
    queries, keys = (image, text) if direction == "image to text" else (text, image)
    ours = weighted_mean(sigmoid_rows(queries, keys, scale, bias))
    same_with_gradients(ours, open_clip.loss.SigLipLoss()(image, text, scale, bias), [image, text, scale, bias])


def test_a_missing_bias_is_a_bias_of_zero(unit: Unit) -> None:
    image, text = unit(5, 1), unit(5, 2)
    without = sigmoid_rows(image, text, number(10.0))
    torch.testing.assert_close(without, sigmoid_rows(image, text, number(10.0), number(0.0)), **CLOSE)


SHAPES = {
    "batch": st.integers(2, 40),
    "captions": st.integers(1, 4),
    "swapped": st.booleans(),
    "rows": st.sampled_from([1, 3, 1_024]),
    "seed": st.integers(0, 10_000),
}


@given(**SHAPES, kind=st.sampled_from(["softmax", "sigmoid"]))
@settings(deadline=None, max_examples=60)
def test_own_pairs_of_k_captions_equal_the_plain_matrices_in_any_number_of_row_blocks(
    unit: Unit, batch: int, captions: int, swapped: bool, rows: int, seed: int, kind: str
) -> None:
    queries, keys = unit(batch, seed), unit(batch * captions, seed + 1)
    if swapped:
        queries, keys = keys, queries
    leaves = [queries, keys, scale := number(12.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "ROWS", rows)
        if kind == "softmax":
            same_with_gradients(
                softmax_rows(queries, keys, scale), reference.softmax_rows(queries, keys, scale), leaves
            )
        else:
            bias = number(-3.0)
            ours, theirs = (f(queries, keys, scale, bias) for f in (sigmoid_rows, reference.sigmoid_rows))
            same_with_gradients(ours, theirs, [*leaves, bias])


@given(**SHAPES, kind=st.sampled_from(["softmax", "sigmoid"]))
@settings(deadline=None, max_examples=60)
def test_soft_targets_of_any_row_sum_equal_the_plain_matrices(
    unit: Unit, batch: int, captions: int, swapped: bool, rows: int, seed: int, kind: str
) -> None:
    queries, keys = unit(batch, seed), unit(batch * captions, seed + 1)
    if swapped:
        queries, keys = keys, queries
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(len(queries), len(keys), generator=generator, dtype=torch.float64)
    target[target < 0.3] = 0
    target[0] = 0
    leaves = [queries, keys, scale := number(12.0)]
    loss, plain = (
        (softmax_rows, reference.softmax_rows) if kind == "softmax" else (sigmoid_rows, reference.sigmoid_rows)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "ROWS", rows)
        ours = loss(queries, keys, scale, target=Dense(target))
        same_with_gradients(ours, plain(queries, keys, scale, target=target), leaves)
    if kind == "softmax":
        assert ours[0].item() == 0.0


@given(queries=st.integers(1, 30), block=st.integers(1, 7))
@settings(deadline=None, max_examples=20)
def test_no_tile_is_larger_than_the_block_and_together_they_are_every_row_once(
    unit: Unit, queries: int, block: int
) -> None:
    seen: list[int] = []

    class Watching(Own):
        def tile(self, tile: pairwise.Tile) -> Tensor:
            assert len(tile.row_pairs) <= block and tile.own.shape == (len(tile.row_pairs), queries)
            seen.extend(tile.row_pairs.tolist())
            return super().tile(tile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "ROWS", block)
        softmax_rows(unit(queries, 1), unit(queries, 2), number(10.0), Watching())
    assert seen == list(range(queries))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float32, 1e-5)])
def test_features_of_any_precision_give_float32_rows_near_the_exact_ones(
    unit: Unit, dtype: torch.dtype, tolerance: float
) -> None:
    image, text, scale = unit(32, 1).detach(), unit(32, 2).detach(), torch.tensor(10.0)
    for loss in (softmax_rows, sigmoid_rows):
        exact = loss(image, text, scale.double())
        with torch.autocast("cpu", torch.bfloat16):
            rows = loss(image.to(dtype), text.to(dtype), scale)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(unit: Unit, dtype: torch.dtype) -> None:
    image, text, scale = unit(9, 1).detach().to(dtype), unit(9, 2).detach().to(dtype), torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        under = softmax_rows(image, text, scale)
    torch.testing.assert_close(under, softmax_rows(image, text, scale), rtol=0, atol=0)


def test_extreme_logits_stay_finite_with_their_gradient(unit: Unit) -> None:
    image = unit(6, 1)
    for loss in (softmax_rows, sigmoid_rows):
        rows = loss(image, -image, number(1e4))
        (gradient,) = torch.autograd.grad(rows.sum(), image)
        assert rows.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 7), (0, 4), (7, 3)])
def test_sides_that_are_not_b_and_b_times_k_are_refused(unit: Unit, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are not B and B"):
        softmax_rows(unit(shape[0]), unit(shape[1]), number(1.0))


def test_a_weighted_mean_counts_only_what_has_weight() -> None:
    values = torch.tensor([1.0, 5.0, 100.0], requires_grad=True)
    mean = weighted_mean(values, torch.tensor([1.0, 3.0, 0.0]))
    assert mean.item() == 4.0
    assert torch.autograd.grad(mean, values)[0].tolist() == [0.25, 0.75, 0.0]
    assert weighted_mean(values.detach(), torch.zeros(3)).item() == 0.0


# Worked in plain NumPy from the papers' formulas: cosines of four images (rows) and four texts (columns).
COSINES = [[0.6, 0.1, 0.3, -0.1], [0.05, 0.7, 0.0, 0.15], [0.45, 0.2, 0.2, 0.1], [-0.05, 0.25, 0.1, 0.55]]
RELATION_KL = 0.028639650104390336
IDENTITY = torch.eye(4, dtype=torch.float64)  # as keys: the queries are the rows of cosines themselves


@pytest.fixture
def cosines() -> Tensor:
    return torch.tensor(COSINES, dtype=torch.float64)


def test_infonce_rows_are_the_worked_ones(cosines: Tensor) -> None:
    wanted = [0.01449412778447728, 0.0005249797139527619, 3.6324947583262337, 0.015448046661177228]
    torch.testing.assert_close(softmax_rows(cosines, IDENTITY, number(1 / 0.07)).tolist(), wanted, rtol=1e-9, atol=0)


def test_nlip_rows_are_the_worked_ones(cosines: Tensor) -> None:
    doubt = torch.tensor([0.05, 0.1, 0.45, 0.02], dtype=torch.float64)[:, None]
    target = (1 - doubt) * IDENTITY + doubt / 3 * (1 - IDENTITY)
    wanted = [0.37163698492733444, 0.9052868844758575, 3.311066186897662, 0.1440194752326058]
    rows = softmax_rows(cosines, IDENTITY, number(1 / 0.07), Dense(target))
    torch.testing.assert_close(rows.tolist(), wanted, rtol=1e-9, atol=0)


def test_softclips_divergence_is_cross_entropy_less_the_targets_entropy(cosines: Tensor) -> None:
    far, near = 7.81602672971786e-07, 3.2614199570202137e-06
    target = torch.tensor(
        [
            [0.9997590003882949, near, 0.00023695658907506152, far],
            [3.263849866607571e-06, 0.9999823347882006, 7.82185003322856e-07, 1.3619176929370519e-05],
            [0.00023695658907506152, far, 0.9997590003882949, near],
            [7.82185003322856e-07, 1.3619176929370519e-05, 3.263849866607571e-06, 0.9999823347882006],
        ],
        dtype=torch.float64,
    )
    entropy = -(target * target.log()).sum(dim=1)
    rows = softmax_rows(cosines, IDENTITY, number(1 / 0.07), Dense(target))
    assert (rows - entropy).mean().item() == pytest.approx(0.9146026948591651, rel=1e-9)


def test_softclips_relations_are_the_negatives_alone_with_the_diagonal_weighted_out(cosines: Tensor) -> None:
    guide = [[1, 0.2, 0.5, 0.1], [0.2, 1, 0.1, 0.3], [0.5, 0.1, 1, 0.2], [0.1, 0.3, 0.2, 1]]
    hidden = torch.softmax(torch.tensor(guide, dtype=torch.float64) / 0.07, dim=1) * (1 - IDENTITY)
    hidden = hidden / hidden.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(hidden, hidden).sum(dim=1)
    rows = softmax_rows(cosines, IDENTITY, number(1 / 0.07), Dense(hidden), weight=Dense(1 - IDENTITY))
    assert (rows - entropy).mean().item() == pytest.approx(RELATION_KL, rel=1e-9)


@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=25)
def test_weights_and_a_queue_equal_the_plain_matrices(batch: int, captions: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    image, text, queue = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=random, dtype=torch.float64), dim=1)
        for n in (batch, batch * captions, 5)
    )
    columns = batch * captions + len(queue)
    q = torch.rand(batch, columns, generator=random, dtype=torch.float64)
    w = torch.rand(batch, columns, generator=random, dtype=torch.float64)
    w[:, ::3] = 0
    q[:, ::3] = 0
    logits = 9 * image @ torch.cat([text, queue]).T
    p = w * logits.exp() / (w * logits.exp()).sum(dim=1, keepdim=True)
    softmax = -torch.special.xlogy(q, p).sum(dim=1)
    likelihood = q * torch.log(torch.sigmoid(logits - 1)) + (1 - q) * torch.log(torch.sigmoid(1 - logits))
    how = {"weight": Dense(w), "queue": queue}
    torch.testing.assert_close(softmax_rows(image, text, number(9), Dense(q), **how), softmax)
    found = sigmoid_rows(image, text, number(9), number(-1), Dense(q), **how)
    torch.testing.assert_close(found, -(w * likelihood).sum(dim=1))


def test_no_column_of_a_queue_is_anyones_own(unit: Unit) -> None:
    image, text, queue = unit(4, 0), unit(4, 1), unit(3, 2)
    whole = reference.softmax_rows(image, torch.cat([text, queue]), number(9), torch.eye(4, 7, dtype=torch.float64))
    torch.testing.assert_close(softmax_rows(image, text, number(9), queue=queue), whole)


def test_fff_is_the_sigmoid_loss_with_a_false_negative_made_positive_and_bias_minus_the_offset(cosines: Tensor) -> None:
    positive = IDENTITY.clone()
    positive[2, 0] = 1
    rows = sigmoid_rows(cosines, IDENTITY, number(1 / 0.1), number(-10.0), Dense(positive))
    assert rows.mean().item() == pytest.approx(6.271184204521584, rel=1e-9)
