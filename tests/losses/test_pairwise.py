"""The pairwise primitive equals open_clip's losses, the plain matrices of reference.py and figures worked in NumPy."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from truepair.losses import (
    BinaryCrossEntropy,
    Columns,
    Complement,
    CrossEntropy,
    Dense,
    Groups,
    LogPartition,
    Objective,
    Own,
    Pooled,
    Relation,
    ReverseDivergence,
    Sharpened,
    Softened,
    Tile,
    Tokens,
    compile_tiles,
    complement_rows,
    pairwise_losses,
    reference,
    sigmoid_rows,
    softmax_pairs,
    softmax_rows,
    weighted_mean,
)
from truepair.losses.tiles import Side, spans
from truepair.losses.walk import TILE

CLOSE = {"rtol": 1e-7, "atol": 1e-12}
Unit = Callable[..., Tensor]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def same_with_gradients(ours: Tensor, theirs: Tensor, leaves: Sequence[Tensor], **close: float) -> None:
    """Equal values, and equal gradients of a sum in which every row has another weight."""
    close = close or CLOSE
    torch.testing.assert_close(ours, theirs, **close)
    rows = torch.linspace(0.5, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    got = torch.autograd.grad((ours * rows).sum(), leaves, retain_graph=True)
    wanted = torch.autograd.grad((theirs * rows).sum(), leaves)
    torch.testing.assert_close(got, wanted, **close)


# -- against open_clip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_the_mean_of_both_softmax_directions_is_open_clips_clip_loss(unit: Unit, batch: int) -> None:
    image, text, scale = unit(batch, 1), unit(batch, 2), number(14.3)
    i2t, t2i = softmax_pairs(image, text, scale)
    same_with_gradients(
        weighted_mean((i2t + t2i) / 2), open_clip.loss.ClipLoss()(image, text, scale), [image, text, scale]
    )


@pytest.mark.parametrize("batch", [1, 2, 17])
@pytest.mark.parametrize("direction", ["image to text", "text to image"])
def test_the_mean_of_the_sigmoid_rows_is_open_clips_siglip_loss(unit: Unit, batch: int, direction: str) -> None:
    image, text, scale, bias = unit(batch, 1), unit(batch, 2), number(10.0), number(-9.5)
    queries, keys = (image, text) if direction == "image to text" else (text, image)
    ours = weighted_mean(sigmoid_rows(queries, keys, scale, bias))
    same_with_gradients(ours, open_clip.loss.SigLipLoss()(image, text, scale, bias), [image, text, scale, bias])


# -- against the plain matrices ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One direction of a batch with everything that a target may be made of, in full matrices."""

    own: Tensor  # (n, m + Q) bool
    guide: Tensor  # (n, m + Q) logits of the second similarity
    similarity: Pooled  # the same, in features
    groups: tuple[Tensor, Tensor]  # of rows and columns
    share: Tensor  # (n,)
    dense: Tensor  # (n, m + Q) in [0, 1], some rows empty
    weight: Tensor  # (n, m + Q) ≥ 0, some zero


def case(rows: int, columns: int, queue: int, seed: int, scale: float) -> Case:
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    total = columns + queue
    own = torch.cat([reference.own_pairs(rows, columns), torch.zeros(rows, queue, dtype=torch.bool)], dim=1)
    one, other = (normalize(drawn(n, 5) - 0.5, dim=1) for n in (rows, total))
    dense = drawn(rows, total).masked_fill(drawn(rows, total) < 0.3, 0.0)
    dense[0] = 0
    weight = drawn(rows, total).masked_fill((drawn(rows, total) < 0.3) & ~own, 0.0)
    groups = (drawn(rows) * 4).long(), (drawn(total) * 4).long()
    return Case(own, scale * one @ other.T, Pooled(one, other, scale), groups, drawn(rows), dense, weight)


def plain_groups(case: Case) -> Tensor:
    return (case.groups[0][:, None] == case.groups[1][None, :]).double()


def out_of(logits: Tensor, out: Tensor) -> Tensor:
    return logits.masked_fill(out, -torch.inf)


Formula = tuple[Callable[[Case], Objective], Callable[[Case, Tensor], Tensor]]
FORMULAS: dict[str, Formula] = {
    "softmax, own pairs": (
        lambda c: CrossEntropy(),
        lambda c, s: reference.cross_entropy(s, reference.alone(c.own)),
    ),
    "softmax, groups": (
        lambda c: CrossEntropy(Groups(*c.groups)),
        lambda c, s: reference.cross_entropy(
            s, plain_groups(c) / plain_groups(c).sum(dim=1, keepdim=True).clamp_min(1)
        ),
    ),
    "softmax, any target": (
        lambda c: CrossEntropy(Dense(c.dense)),
        lambda c, s: reference.cross_entropy(s, c.dense),
    ),
    "softmax, any target, divergence": (
        lambda c: CrossEntropy(Dense(c.dense), divergence=True),
        lambda c, s: reference.divergence(s, c.dense),
    ),
    "softmax, weights": (
        lambda c: CrossEntropy(Dense(c.dense * (c.weight > 0)), Dense(c.weight)),
        lambda c, s: reference.cross_entropy(s + c.weight.log(), c.dense * (c.weight > 0)),
    ),
    "softmax, softened": (
        lambda c: CrossEntropy(Softened(c.similarity, 0.3)),
        lambda c, s: reference.cross_entropy(s, reference.softened(c.guide, c.own, 0.3)),
    ),
    "softmax, softened row by row, divergence": (
        lambda c: CrossEntropy(Softened(c.similarity, c.share), divergence=True),
        lambda c, s: reference.divergence(s, reference.softened(c.guide, c.own, c.share[:, None])),
    ),
    "softmax, sharpened": (
        lambda c: CrossEntropy(Sharpened(Softened(c.similarity, 0.4))),
        lambda c, s: reference.cross_entropy(s, reference.sharpened(c.guide, c.own, 0.4)),
    ),
    "softmax of the others, relations": (
        lambda c: CrossEntropy(Relation(c.similarity), others=True),
        lambda c, s: reference.cross_entropy(out_of(s, c.own), reference.relation(c.guide, c.own)),
    ),
    "softmax of the others, relations, divergence": (
        lambda c: CrossEntropy(Relation(c.similarity), others=True, divergence=True),
        lambda c, s: reference.divergence(out_of(s, c.own), reference.relation(c.guide, c.own)),
    ),
    "reverse divergence, softened": (
        lambda c: ReverseDivergence(Softened(c.similarity, c.share)),
        lambda c, s: reference.reverse_divergence(s, reference.softened(c.guide, c.own, c.share[:, None])),
    ),
    "reverse divergence of the others, relations": (
        lambda c: ReverseDivergence(Relation(c.similarity), others=True),
        lambda c, s: reference.reverse_divergence(out_of(s, c.own), reference.relation(c.guide, c.own)),
    ),
    "complement, own pairs": (
        lambda c: Complement(),
        lambda c, s: reference.complement(s, c.own.double()),
    ),
    "complement, any target": (
        lambda c: Complement(Dense(c.dense)),
        lambda c, s: reference.complement(s, c.dense),
    ),
    "complement, softened": (
        lambda c: Complement(Softened(c.similarity, 0.4)),
        lambda c, s: reference.complement(s, reference.softened(c.guide, c.own, 0.4)),
    ),
    "complement, sharpened": (
        lambda c: Complement(Sharpened(Softened(c.similarity, c.share))),
        lambda c, s: reference.complement(s, reference.sharpened(c.guide, c.own, c.share[:, None])),
    ),
    "normaliser, weights": (
        lambda c: LogPartition(Dense(c.weight)),
        lambda c, s: (s + c.weight.log()).logsumexp(dim=1),
    ),
    "normaliser of the others, weights of columns": (
        lambda c: LogPartition(Columns(c.weight.amax(dim=0)), others=True),
        lambda c, s: out_of(s + c.weight.amax(dim=0).log(), c.own).logsumexp(dim=1),
    ),
    "sigmoid, own pairs": (
        lambda c: BinaryCrossEntropy(),
        lambda c, s: reference.binary_cross_entropy(s, c.own.double()),
    ),
    "sigmoid, groups": (
        lambda c: BinaryCrossEntropy(Groups(*c.groups, normalise=False)),
        lambda c, s: reference.binary_cross_entropy(s, plain_groups(c)),
    ),
    "sigmoid, any target and weight": (
        lambda c: BinaryCrossEntropy(Dense(c.dense), Dense(c.weight)),
        lambda c, s: reference.binary_cross_entropy(s, c.dense, c.weight),
    ),
    "sigmoid, softened": (
        lambda c: BinaryCrossEntropy(Softened(c.similarity, 0.3)),
        lambda c, s: reference.binary_cross_entropy(s, reference.softened(c.guide, c.own, 0.3)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(
    batch=st.integers(2, 70),
    captions=st.integers(1, 5),
    swapped=st.booleans(),
    queue=st.sampled_from([0, 0, 7]),
    tile=st.sampled_from([(3, 5), (16, 11), (512, 1024), (1, 200), (70, 2)]),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    seed=st.integers(0, 10_000),
    copies=st.integers(1, 3),
)
@settings(deadline=None, max_examples=12)
def test_each_formula_in_tiles_of_both_directions_equals_the_plain_matrices(
    name: str,
    batch: int,
    captions: int,
    swapped: bool,
    queue: int,
    tile: tuple[int, int],
    scale: float,
    seed: int,
    copies: int,
) -> None:
    """Duplicate features, K captions on either side, a queue for either direction; values and gradients to 1e-6."""
    random = torch.Generator().manual_seed(seed)
    counts = (batch, batch * captions)[:: -1 if swapped else 1]
    left, right, left_queue, right_queue = (
        normalize(torch.randn(n, 6, generator=random, dtype=torch.float64), dim=1) for n in (*counts, queue, queue)
    )
    left[: copies // 2 + 1] = left[0]
    left, right = left.requires_grad_(), right.requires_grad_()
    leaves = [left, right, temperature := number(scale), bias := number(-1.5)]
    of_rows, of_columns = case(*counts, queue, seed, scale), case(*counts[::-1], queue, seed + 1, scale)
    objective, plain = FORMULAS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE, "cpu", tile)
        (rows,), (columns,) = pairwise_losses(
            left,
            right,
            temperature,
            bias,
            rows=[objective(of_rows)],
            columns=[objective(of_columns)],
            left_queue=left_queue if queue else None,
            right_queue=right_queue if queue else None,
        )
        ours = torch.cat([rows, columns])
        theirs = torch.cat(
            [
                plain(of_rows, temperature * left @ torch.cat([right, right_queue]).T + bias),
                plain(of_columns, temperature * right @ torch.cat([left, left_queue]).T + bias),
            ]
        )
        used = leaves if name.startswith("sigmoid") else leaves[:3]  # a softmax does not feel the bias
        size = theirs.detach().abs().max().item()
        gradient = max(g.abs().max().item() for g in torch.autograd.grad(theirs.sum(), used, retain_graph=True))
        same_with_gradients(ours, theirs, used, rtol=1e-6, atol=1e-9 * max(1, size, gradient))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    captions=st.integers(1, 3),
    pad=st.booleans(),
    budget=st.integers(1, 99),
)
@settings(deadline=None, max_examples=25)
def test_fine_grained_similarity_is_the_mean_of_best_matches_of_real_tokens(
    rows: int, columns: int, captions: int, pad: bool, budget: int
) -> None:
    """Tokens of each pair stand for all its captions; zero tokens are padding; any number of token pairs at once."""
    random = torch.Generator().manual_seed(rows * 100 + columns)
    pairs = max(rows, columns)
    image, text = (normalize(torch.randn(pairs, n, 4, generator=random, dtype=torch.float64), dim=2) for n in (3, 2))
    if pad:
        image[0, 1:] = 0
        text[-1] = 0
    tokens = Tokens(image, text, scale=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truepair.losses.similarity.TOKEN_PAIRS", budget)
        seen = whole(tokens, pairs, pairs * captions, captions)
    wanted = 2 * reference.fine_grained(image, text).repeat_interleave(captions, dim=1)
    torch.testing.assert_close(seen, wanted, **CLOSE)


def whole(similarity: Pooled | Tokens, rows: int, columns: int, captions: int) -> Tensor:
    """A similarity's matrix, put together from uneven tiles."""
    out = torch.full((rows, columns), torch.nan, dtype=torch.float64)
    for r in spans(0, rows, 4):
        for c in spans(0, columns, 5):
            sides = Side(r, 1, rows), Side(c, captions, rows)
            out[r, c] = similarity.tile(Tile.of(*sides, r, torch.device("cpu"), torch.float64))
    return out


@pytest.mark.parametrize("captions", [1, 3])
def test_pooled_similarity_of_pairs_stands_for_all_their_captions(unit: Unit, captions: int) -> None:
    one, other = unit(11, 1).detach(), unit(11, 2).detach()
    wanted = 3 * one @ other.repeat_interleave(captions, dim=0).T
    torch.testing.assert_close(whole(Pooled(one, other, 3.0), 11, 11 * captions, captions), wanted, **CLOSE)
    each = other.repeat_interleave(captions, dim=0)
    torch.testing.assert_close(whole(Pooled(one, each, 3.0), 11, 11 * captions, captions), wanted, **CLOSE)


@pytest.mark.parametrize(
    "senseless",
    [
        lambda guide: CrossEntropy(others=True),
        lambda guide: CrossEntropy(Softened(guide, 0.3), others=True),
        lambda guide: CrossEntropy(Softened(guide, 0.3), Dense(torch.ones(3, 3))),
    ],
)
def test_targets_with_mass_where_nothing_can_be_chosen_are_refused(senseless: Callable, unit: Unit) -> None:
    with pytest.raises(ValueError, match="softmax"):
        senseless(Pooled(unit(3, 1), unit(3, 2)))


def test_features_that_do_not_cover_the_batch_are_refused(unit: Unit) -> None:
    few = unit(3, 1).detach()
    with pytest.raises(ValueError, match="gather"):
        softmax_rows(unit(5, 1), unit(5, 2), number(9.0), Softened(Pooled(few, few), 0.3))


def test_several_objectives_of_both_directions_are_what_each_is_alone(unit: Unit) -> None:
    image, text, scale, guide = unit(9, 1), unit(9, 2), number(20.0), Pooled(unit(9, 3).detach(), unit(9, 3).detach())
    alone = [CrossEntropy(Softened(guide, 0.3)), CrossEntropy(Relation(guide), others=True), Complement()]
    rows, columns = pairwise_losses(image, text, scale, rows=alone, columns=alone[:2])
    for objective, row in zip(alone, rows, strict=True):
        (one,), _ = pairwise_losses(image, text, scale, rows=[objective])
        same_with_gradients(row, one, [image, text, scale])
    for objective, column in zip(alone, columns, strict=False):
        (one,), _ = pairwise_losses(text, image, scale, rows=[objective])
        same_with_gradients(column, one, [image, text, scale])


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), step=st.integers(1, 7))
@settings(deadline=None, max_examples=20)
def test_no_tile_is_larger_than_asked_and_together_they_are_every_pair_once(rows: int, columns: int, step: int) -> None:
    columns *= rows
    seen = torch.zeros(rows, columns)

    class Watching(Own):
        def tile(self, tile: Tile) -> Tensor | None:
            assert tile.own.shape[0] <= step and tile.own.shape[1] <= 2 * step
            assert tile.crosses or not tile.own.any()
            seen[tile.rows, tile.columns] += 1
            return super().tile(tile)

    unit = torch.eye(8, dtype=torch.float64)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE, "cpu", (step, 2 * step))
        softmax_rows(unit.expand(rows, 8), unit.expand(columns, 8), number(10.0), Watching())
    assert seen.eq(1).all()


# -- precision and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float32, 1e-5)])
def test_features_of_any_precision_give_float32_losses_near_the_exact_ones(
    unit: Unit, dtype: torch.dtype, tolerance: float
) -> None:
    image, text, scale = unit(32, 1).detach(), unit(32, 2).detach(), torch.tensor(10.0)
    for loss in (softmax_rows, sigmoid_rows, complement_rows):
        exact = loss(image, text, scale.double())
        leaves = [side.to(dtype).requires_grad_() for side in (image, text)]
        with torch.autocast("cpu", torch.bfloat16):
            rows = loss(*leaves, scale)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), exact, rtol=tolerance, atol=tolerance)
        assert all(gradient.dtype == dtype for gradient in torch.autograd.grad(rows.sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(unit: Unit, dtype: torch.dtype) -> None:
    image, text, scale = unit(9, 1).detach().to(dtype), unit(9, 2).detach().to(dtype), torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        under = softmax_rows(image, text, scale)
    torch.testing.assert_close(under, softmax_rows(image, text, scale), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMULAS)
def test_extreme_logits_stay_finite_with_their_gradient(name: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(6, 8, generator=random, dtype=dtype), dim=1).requires_grad_()
    objective = FORMULAS[name][0](case(6, 6, 0, 0, 100.0))
    scale = torch.tensor(1e4, dtype=dtype, requires_grad=True)
    for other in (image, -image):
        (rows,), (columns,) = pairwise_losses(image, other, scale, rows=[objective], columns=[objective])
        gradients = torch.autograd.grad((rows + columns).sum(), [image, scale])
        assert rows.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


def test_nothing_of_the_size_of_the_matrix_is_kept_for_backward() -> None:
    batch, width = 2_048, 16
    image, text = (normalize(torch.randn(batch, width), dim=1).requires_grad_() for _ in range(2))
    guide = Pooled(image.detach(), image.detach(), 14.3)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        i2t, t2i = softmax_pairs(image, text, torch.tensor(14.3), Softened(guide, 0.3), Softened(guide, 0.3))
        weighted_mean(i2t + t2i)
    assert sum(saved.values()) < 16 * batch * width * 4 < batch * batch  # bytes; the matrix has 4 · batch²


@pytest.mark.parametrize("name", ["softmax, softened", "complement, sharpened"])
def test_compiled_tiles_change_nothing_but_rounding(name: str) -> None:
    """The whole of what is done to a tile is one graph: dynamo is told to fail where it would break it."""
    random = torch.Generator().manual_seed(0)
    image, text = (
        normalize(torch.randn(23, 8, generator=random, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2)
    )
    of_rows, of_columns = case(23, 23, 0, 1, 14.3), case(23, 23, 0, 2, 14.3)

    def losses() -> Tensor:
        scale, objective = number(14.3), FORMULAS[name][0]
        (rows,), (columns,) = pairwise_losses(
            image, text, scale, rows=[objective(of_rows)], columns=[objective(of_columns)]
        )
        return torch.cat([rows, columns])

    module = importlib.import_module("truepair.losses.walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE, "cpu", (10, 7))
        plain = losses()
        patch.setattr(module, "show", module.show)
        patch.setattr(module, "slope_of", module.slope_of)
        torch.compiler.reset()  # of what other tests compiled
        compile_tiles(backend="aot_eager", fullgraph=True)
        same_with_gradients(losses(), plain, [image, text])


# -- refusals and means ------------------------------------------------------------------------------------------------


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


def test_a_pair_alone_in_its_batch_has_no_relation_and_no_loss(unit: Unit) -> None:
    image, text, guide = unit(1, 1), unit(1, 2), Pooled(unit(1, 3).detach(), unit(1, 3).detach())
    objectives = [CrossEntropy(Relation(guide), others=True), Complement(), CrossEntropy()]
    rows, _ = pairwise_losses(image, text, number(10.0), rows=objectives)
    assert [row.item() for row in rows] == [0.0, 0.0, 0.0]
    assert torch.autograd.grad(sum(rows), image)[0].eq(0).all()
