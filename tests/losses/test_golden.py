"""Figures worked in plain NumPy from the papers' formulas, independent of this project's code, one direction each."""

import pytest
import torch
from golden import ALPHA, STUDENT, TAU, TWIN
from torch import Tensor

from truepair.losses import (
    CrossEntropy,
    Dense,
    Pooled,
    Relation,
    Sharpened,
    Softened,
    Tile,
    complement_rows,
    pairwise_losses,
    sigmoid_rows,
    softmax_rows,
    weighted_mean,
)
from truepair.losses.tiles import Side, spans

GUIDE = [[1, 0.2, 0.5, 0.1], [0.2, 1, 0.1, 0.3], [0.5, 0.1, 1, 0.2], [0.1, 0.3, 0.2, 1]]
BETA = 0.3
CLOSE = {"rtol": 1e-9, "atol": 0}


def double(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def student() -> dict[str, Tensor]:
    """Queries, keys, queue and scale whose logits are the student's: the queries are the rows of cosines themselves."""
    identity = torch.eye(6, dtype=torch.float64)
    scale = torch.tensor(1 / TAU, dtype=torch.float64)
    return {"queries": double(STUDENT), "keys": identity[:4], "queue": identity[4:], "scale": scale}


def in_batch(student: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return student["queries"][:, :4], student["keys"][:, :4], student["scale"]


def twin() -> Softened:
    return Softened(Pooled(double(TWIN), torch.eye(6, dtype=torch.float64), 1 / TAU), ALPHA)


def guide() -> Pooled:
    return Pooled(double(GUIDE), torch.eye(4, dtype=torch.float64), 1 / TAU)


def test_infonce(student: dict[str, Tensor]) -> None:
    wanted = [0.01449412778447728, 0.0005249797139527619, 3.6324947583262337, 0.015448046661177228]
    torch.testing.assert_close(softmax_rows(*in_batch(student)).tolist(), wanted, **CLOSE)


def test_nevers_positive_learning_is_cross_entropy_with_the_twins_softened_target(student: dict[str, Tensor]) -> None:
    wanted = [0.11550544425204311, 0.07061142732344391, 2.378749667336979, 0.034746296132885]
    torch.testing.assert_close(softmax_rows(**student, target=twin()).tolist(), wanted, **CLOSE)


NEVER_TARGET = [
    [0.97917828913, 0.000814769010575, 0.0163650730458, 4.67943183754e-05, 0.000195260237845, 0.00339981425773],
    [9.75963183404e-05, 0.987144797778, 4.7777463647e-05, 0.000149816498124, 0.0125563604875, 3.65145414838e-06],
    [0.375289708261, 0.00388168645145, 0.602528682164, 0.00164728232543, 0.000455396217523, 0.0161972445815],
    [7.52383195465e-05, 0.00174326977966, 0.000555940163918, 0.997157910899, 0.000313949485317, 0.000153691352059],
]
NEVER_SHARPENED = [
    [1.0, 6.92179300642e-07, 0.000279245060139, 2.28315740731e-09, 3.97536702387e-08, 1.20520239103e-05],
    [9.77315690306e-09, 1.0, 2.34214718113e-09, 2.30296471667e-08, 0.000161769093757, 1.36804286194e-11],
    [0.279358502447, 2.98861166987e-05, 1.0, 5.38225985739e-06, 4.1134613652e-07, 0.000520368339104],
    [5.693099546e-09, 3.05632692064e-06, 3.10832703166e-07, 1.0, 9.91265872704e-08, 2.37557893783e-08],
]
SOFTCLIP_TARGET = [
    [0.999759000388, 3.26141995702e-06, 0.000236956589075, 7.81602672972e-07],
    [3.26384986661e-06, 0.999982334788, 7.82185003323e-07, 1.36191769294e-05],
    [0.000236956589075, 7.81602672972e-07, 0.999759000388, 3.26141995702e-06],
    [7.82185003323e-07, 1.36191769294e-05, 3.26384986661e-06, 0.999982334788],
]


def whole(target: Softened | Sharpened, rows: int) -> Tensor:
    """A normalised target's full matrix, by its own calls; the columns of a queue follow those of the batch."""
    device, like = torch.device("cpu"), torch.empty(0, dtype=torch.float64)
    columns = target.soft.guide if isinstance(target, Sharpened) else target.guide
    tiles = [
        Tile.of(Side(slice(0, rows), 1, rows), Side(c, 1, rows), slice(0, rows), device, torch.float64)
        for c in spans(0, len(columns.columns), 3)
    ]
    sums = target.start(rows, like)
    for tile in tiles:
        target.collect(sums, tile)
    return torch.cat([target.tile(tile, target.normalisers(sums)) for tile in tiles], dim=1)


def test_the_targets_themselves() -> None:
    torch.testing.assert_close(whole(twin(), 4), double(NEVER_TARGET), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole(Sharpened(twin()), 4), double(NEVER_SHARPENED), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole(Softened(guide(), BETA), 4), double(SOFTCLIP_TARGET), rtol=1e-9, atol=1e-12)


def test_nevers_loss_is_the_mean_of_either_learning_over_its_own_subset(student: dict[str, Tensor]) -> None:
    clean = torch.tensor([True, True, False, True])
    positive, negative = softmax_rows(**student, target=twin()), complement_rows(**student, target=Sharpened(twin()))
    both = weighted_mean(positive, clean) + weighted_mean(negative, ~clean)
    assert both.item() == pytest.approx(1.5578814777025727, rel=1e-9)


def test_nevers_negative_learning_is_the_complement_with_the_sharpened_target(student: dict[str, Tensor]) -> None:
    wanted = [0.018050791329618798, 0.014180921985493915, 1.484260421799782, 0.02016968358010615]
    torch.testing.assert_close(complement_rows(**student, target=Sharpened(twin())).tolist(), wanted, **CLOSE)


def test_nlips_harmonised_rows(student: dict[str, Tensor]) -> None:
    doubt = torch.tensor([0.05, 0.1, 0.45, 0.02], dtype=torch.float64)[:, None]
    own = torch.eye(4, dtype=torch.float64)
    target = (1 - doubt) * own + doubt / 3 * (1 - own)
    wanted = [0.37163698492733444, 0.9052868844758575, 3.311066186897662, 0.1440194752326058]
    torch.testing.assert_close(softmax_rows(*in_batch(student), Dense(target)).tolist(), wanted, **CLOSE)


def test_softclips_two_divergences(student: dict[str, Tensor]) -> None:
    soft = CrossEntropy(Softened(guide(), BETA), divergence=True)
    relation = CrossEntropy(Relation(guide()), others=True, divergence=True)
    rows, _ = pairwise_losses(*in_batch(student), rows=[soft, relation])
    means = [row.mean().item() for row in rows]
    assert means == pytest.approx([0.9146026948591651, 0.028639650104390336], rel=1e-9)


def test_fff_is_the_sigmoid_loss_with_bias_minus_the_offset(student: dict[str, Tensor]) -> None:
    queries, keys, _ = in_batch(student)
    positive = torch.eye(4, dtype=torch.float64)
    positive[2, 0] = 1  # a false negative, found
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (1 / 0.1, -10.0))
    assert sigmoid_rows(queries, keys, scale, bias, Dense(positive)).mean().item() == pytest.approx(
        6.271184204521584, rel=1e-9
    )


def test_negative_learning_does_not_pull_a_pair_that_the_model_doubts(student: dict[str, Tensor]) -> None:
    """∂NL/∂s_ii = -p_ii Σ_{j≠i} w_ij p_ij/(1-p_ij), where InfoNCE has -(1-p_ii) (METHODS.md §1)."""
    queries = student["queries"].clone().requires_grad_()
    complement = complement_rows(queries, student["keys"], student["scale"], Sharpened(twin()), queue=student["queue"])
    (slope,) = torch.autograd.grad(complement.sum(), queries)
    p = torch.softmax(student["queries"] / TAU, dim=1)
    q = ALPHA * torch.softmax(double(TWIN) / TAU, dim=1) + (1 - ALPHA) * torch.eye(4, 6)
    w = 1 - q**2 / (q**2).sum(dim=1, keepdim=True)
    odds = (w * p / (1 - p)).masked_fill(torch.eye(4, 6, dtype=torch.bool), 0.0).sum(dim=1)
    own = p[:, :4].diagonal()
    torch.testing.assert_close(slope[:, :4].diagonal() * TAU, -own * odds, rtol=1e-6, atol=1e-12)
