"""FFF makes positives of own captions, the same text, and what similarities find; and counts what it did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.losses import Pooled, reference, row_tiles
from truepair.losses.assignment import Assignment, mine
from truepair.losses.walk import TILE
from truepair.methods.base import Features, Inputs, Loss, Pairs
from truepair.methods.fff import Fff, FffOptions
from truepair.models import create

SCALE = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
BIAS = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
ABSOLUTE = {"thresholds": "absolute", "p_it": 0.5, "p_it_low": 0.3, "p_ii": 0.6, "p_tt": 0.7, "p_own": 0.0}


def unit(rows: int, seed: int, width: int = 4) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=1)


def loss(
    options: FffOptions, x: Tensor, t: Tensor, epoch: float = 5.0, captions: Tensor | None = None, **columns: Tensor
) -> tuple[Loss, Features]:
    """Of a student that differs from the twin, whose features are x and t."""
    features = Features(unit(len(x), 11).requires_grad_(), unit(len(t), 12).requires_grad_(), {"x": x, "t": t})
    ids = torch.arange(len(t)) if captions is None else captions
    pairs = Pairs(torch.arange(len(x)), torch.zeros(len(x)), columns, epoch, 10, ids)
    return Fff(options).loss(features, SCALE, BIAS, pairs), features


def plain(features: Features, positive: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    logits = SCALE * features.image @ features.text.T + BIAS
    return reference.binary_cross_entropy(logits, positive.double(), weight).mean()


@given(
    batch=st.integers(2, 20),
    captions=st.integers(1, 4),
    seed=st.integers(0, 999),
    tile=st.sampled_from([(3, 5), (64, 64)]),
)
@settings(deadline=None, max_examples=25)
def test_the_assignment_is_the_papers_three_conditions_in_full_matrices(
    batch: int, captions: int, seed: int, tile: tuple[int, int]
) -> None:
    x, t = unit(batch, seed).float(), unit(batch * captions, seed + 1).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE, "cpu", tile)
        found, features = loss(FffOptions(**ABSOLUTE, cap=batch * captions), x, t)
    blocks = t.view(batch, captions, -1)
    s_it, s_ii = x @ t.T, (x @ x.T).repeat_interleave(captions, dim=1)
    s_tt = torch.einsum("ikd,jld->ijkl", blocks, blocks).mean(dim=(2, 3)).repeat_interleave(captions, dim=1)
    own = reference.own_pairs(batch, batch * captions)
    positive = own | (s_it > 0.5) | ((s_ii > 0.6) & (s_it > 0.3)) | (s_tt > 0.7)
    wanted = plain(features, positive)
    torch.testing.assert_close(found.total, wanted)
    leaves = [features.image, features.text, SCALE, BIAS]
    torch.testing.assert_close(torch.autograd.grad(found.total, leaves), torch.autograd.grad(wanted, leaves))
    assert found.logs["new_positives"].item() == pytest.approx((positive & ~own).sum().item() / batch)


def test_before_the_warm_up_is_over_only_own_captions_and_the_same_text_are_positives() -> None:
    x = unit(6, 1)
    ids = torch.tensor([0, 1, 2, 0, 4, 2])
    found, features = loss(FffOptions(**ABSOLUTE, warmup_epochs=2.0), x, x, epoch=1.9, captions=ids)
    torch.testing.assert_close(found.total, plain(features, ids[:, None] == ids[None, :]))
    assert found.logs["same_text"].item() == found.logs["mining"].item() == 0
    later, _ = loss(FffOptions(**ABSOLUTE, warmup_epochs=2.0), x, x, epoch=2.0, captions=ids)
    assert later.logs["same_text"].item() == pytest.approx(4 / 6) and later.logs.keys() == found.logs.keys()


def test_a_row_takes_at_most_cap_new_positives_and_the_most_similar_ones() -> None:
    x = normalize(
        torch.tensor([[1.0, 0.0], [0.95, 0.1], [0.9, 0.3], [0.8, 0.5], [-1.0, 0.2]], dtype=torch.float64), dim=1
    )
    all_alike = FffOptions(**ABSOLUTE | {"p_it": -0.5, "p_tt": 1.0}, cap=2)
    found, features = loss(all_alike, x, x)
    s_it = (x @ x.T).masked_fill(torch.eye(5, dtype=torch.bool), -1)
    allowed = torch.zeros(5, 5, dtype=torch.bool).scatter(1, s_it.topk(2, dim=1).indices, True) & (s_it > -0.5)
    torch.testing.assert_close(found.total, plain(features, allowed | torch.eye(5, dtype=torch.bool)))
    assert found.logs["new_positives"].item() == pytest.approx(8 / 5)


def test_a_collapsed_model_is_capped_too_and_seen_for_what_it_is() -> None:
    same = unit(1, 1).expand(32, 4)
    found, features = loss(FffOptions(**ABSOLUTE | {"p_it": 0.5}, cap=5), same, same)
    torch.testing.assert_close(found.total, plain(features, torch.eye(32, dtype=torch.bool)))  # equals: none of them
    counted = {name: value.item() for name, value in found.logs.items()}
    assert counted["found_share"] == 1.0 and counted["new_positives"] == 0.0
    assert Fff(FffOptions()).complaint(counted) is not None


def test_own_captions_that_similarity_calls_wrong_neither_attract_nor_repel() -> None:
    x = unit(5, 3)
    t = x.clone()
    t[2] = -x[2]
    found, features = loss(FffOptions(**ABSOLUTE | {"p_it": 1.0, "p_ii": 1.0, "p_tt": 1.0, "p_own": 0.2}), x, t)
    weight = torch.ones(5, 5, dtype=torch.float64)
    weight[2, 2] = 0
    torch.testing.assert_close(found.total, plain(features, torch.eye(5, dtype=torch.bool), weight))
    logits = SCALE * features.image @ features.text.T + BIAS
    siglip = reference.binary_cross_entropy(logits, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(found.per_pair, siglip.detach())  # the noise model still hears of it


def test_no_own_caption_is_ignored_while_own_ones_are_no_more_alike_than_others() -> None:
    x, t = unit(200, 5, 64), unit(200, 6, 64)  # a twin that knows nothing calls 95 of 100 own captions wrong
    blind, features = loss(FffOptions(p_it=1.0, p_it_low=1.0, p_ii=1.0, p_tt=1.0), x, t)
    assert blind.logs["ignored"].item() == 0 and abs(blind.logs["own_gap"].item()) < 0.05
    siglip = plain(features, torch.eye(200, dtype=torch.bool))  # but for a pair above the sampled highest quantile
    assert blind.total.item() == pytest.approx(siglip.item(), rel=1e-3)
    seeing, _ = loss(FffOptions(p_it=1.0, p_it_low=1.0, p_ii=1.0, p_tt=1.0), x, normalize(t + 0.2 * x, dim=1))
    assert 0.2 < seeing.logs["ignored"].item() < 0.8


def test_quantiles_are_those_of_similarities_between_different_pairs_and_run_on() -> None:
    torch.manual_seed(0)
    x, t = unit(300, 5, 16).float(), unit(300, 6, 16).float()
    method = Fff(FffOptions(p_it=0.9, p_it_low=0.5, p_ii=0.8, p_tt=0.7, p_own=0.1))
    features = Features(unit(300, 1), unit(300, 2), {"x": x, "t": t})
    pairs = Pairs(torch.arange(300), torch.zeros(300), {}, 0.0, 10, torch.arange(300))
    method.loss(features, SCALE, BIAS, pairs)
    others = ~torch.eye(300, dtype=torch.bool)
    matrices = (x @ t.T, x @ t.T, x @ x.T, t @ t.T, x @ t.T)
    exact = torch.stack([m[others].quantile(q) for m, q in zip(matrices, (0.9, 0.5, 0.8, 0.7, 0.1), strict=True)])
    torch.testing.assert_close(method.running, exact, atol=5e-3, rtol=0)
    method.loss(Features(features.image, features.text, {"x": x, "t": x}), SCALE, BIAS, pairs)
    moved = 0.1 * (x @ x.T)[others].quantile(0.9) + 0.9 * exact[0]
    assert method.running[0].item() == pytest.approx(moved.item(), abs=5e-3)
    assert "running" in method.state_dict()


def test_what_is_found_is_counted_by_the_truth_and_never_chosen_by_it() -> None:
    x = unit(6, 3)
    x[3] = x[0]  # shows the same, and is found; row 5 shows what row 1 says, and is not
    shows, says = torch.tensor([7, 8, 9, 7, -1, 8]), torch.tensor([7, 8, 9, 7, -1, 3])
    options = FffOptions(
        **ABSOLUTE | {"p_it": 0.999, "p_ii": 1.0, "p_tt": 1.0}, image_truth="label", caption_truth="label@caption_from"
    )
    found, _ = loss(options, x, x, **{"label": shows, "label@caption_from": says})
    untold, _ = loss(FffOptions(**ABSOLUTE | {"p_it": 0.999, "p_ii": 1.0, "p_tt": 1.0}), x, x)
    torch.testing.assert_close(found.total, untold.total)
    assert [6 * found.logs[name].item() for name in ("new_positives", "new_true")] == pytest.approx([2, 2])
    assert found.logs["false_negatives"].item() * 6 == pytest.approx(3)
    assert "new_true" not in untold.logs


def test_a_flood_of_positives_is_complained_of() -> None:
    method = Fff(FffOptions())
    sentence = method.complaint({"mining": 1.0, "found_share": 0.2, "own_gap": 0.5})
    assert sentence is not None and "20%" in sentence and "--options.p-it" in sentence
    assert method.complaint({"mining": 1.0, "found_share": 0.04, "own_gap": 0.5}) is None
    assert method.complaint({"mining": 0.0, "found_share": 0.0, "own_gap": 0.0}) is None
    collapsed = method.complaint({"mining": 1.0, "found_share": 0.001, "own_gap": 0.01})
    assert collapsed is not None and "0.010" in collapsed
    emptied = method.complaint({"mining": 1.0, "found_share": 0.001, "own_gap": 0.2, "ignored": 0.9})
    assert emptied is not None and "90%" in emptied and "--options.p-own" in emptied


def test_features_are_the_twins_the_students_or_columns() -> None:
    model = create("truepair-test")
    images = torch.randint(0, 256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    inputs = Inputs(images, model.tokenize(["a", "b", "c"]))
    twin = Fff(FffOptions())
    twin.bind(model, None, None)
    observed = twin.observe(model, inputs)
    assert observed["x"].shape == observed["t"].shape == (3, 32) and not observed["x"].requires_grad
    student = Fff(FffOptions(similarity="student"))
    student.bind(model, None, None)
    assert student.observe(model, inputs) == {} and not list(student.parameters())
    columns = FffOptions(similarity="columns", image_features="a", text_features="b", **ABSOLUTE)
    assert Fff(columns).needs.columns == ("a", "b")
    x, t = unit(6, 1), unit(6, 2)
    by_column, _ = loss(columns, x * 0, t * 0, a=x.half(), b=t.half())
    by_twin, _ = loss(FffOptions(**ABSOLUTE), x.half().float(), t.half().float())
    torch.testing.assert_close(by_column.total, by_twin.total)


@pytest.mark.parametrize(("shape", "said"), [((6, 2, 4), "shape"), ((6, 5), "one dual encoder")])
def test_columns_that_cannot_be_compared_are_refused(shape: tuple[int, ...], said: str) -> None:
    options = FffOptions(similarity="columns", image_features="a", text_features="b")
    with pytest.raises(UserError, match=said):
        loss(options, unit(6, 1), unit(6, 2), a=torch.ones(shape), b=torch.ones(6, 4))


def test_a_floor_is_found_in_tiles_as_in_one() -> None:
    x, t = unit(17, 1).float(), unit(34, 2).float()
    mean = t.view(17, 2, -1).mean(dim=1)
    thresholds = torch.tensor([0.2, 0.1, 0.5, 0.5])
    target = Assignment(Pooled(x, t), Pooled(x, x), Pooled(mean, mean), thresholds, torch.arange(34).view(17, 2))
    floors = []
    for size in ((4, 6), (64, 64)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TILE, "cpu", size)
            capped, mined = mine(target, row_tiles(17, 1, 2, torch.device("cpu")), 17, 3)
        assert capped.floor is not None and mined.new.max() <= 3
        floors.append(capped.floor)
    torch.testing.assert_close(*floors)


def test_a_fresh_model_starts_at_tau_one_tenth() -> None:
    assert (
        Fff(FffOptions()).needs.init_scale == pytest.approx(2.302585)
        and Fff(FffOptions()).needs.init_bias == "negatives"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_it": 1.5},
        {"p_own": -0.5},
        {"thresholds": "absolute", "p_own": -0.5},
        {"cap": 0},
        {"warmup_epochs": -1.0},
        {"similarity": "columns"},
        {"image_features": "a"},
        {"image_truth": "label"},
    ],
)
def test_senseless_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="fff"):
        FffOptions(**wrong)  # type: ignore[arg-type]
