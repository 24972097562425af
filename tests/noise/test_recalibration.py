"""p_noise refitted to labels: the curves of the literature, never against the ranking, sober where labels are few."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from truepair.errors import UserError
from truepair.noise.labels import Labels
from truepair.noise.rate import draw_sample, sample_weight, strata
from truepair.noise.recalibration import Recalibration, gain, recalibrate

Vector = NDArray[np.float64]

LABELS = st.lists(
    st.tuples(st.sampled_from([0.0, 1e-30, 0.2, 0.5, 1.0]) | st.floats(0, 1), st.booleans(), st.integers(1, 9)),
    min_size=1,
    max_size=40,
)
KINDS = pytest.mark.parametrize("kind", ["platt", "isotonic"])


def overconfident(n: int, seed: int = 0) -> tuple[Vector, NDArray[np.bool_], Vector]:
    """p_noise, truth and true probability of n pairs whose p_noise is further out than it should be."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.3
    right = expit(random.normal(np.where(truth, 1.0, -1.0), 1) * 2 + logit(0.3))
    return expit(2.5 * logit(right)), truth, right


def columns(labels: list[tuple[float, bool, int]]) -> tuple[Vector, NDArray[np.bool_], Vector]:
    p, noisy, weight = (np.array(column) for column in zip(*labels, strict=True))
    return p, noisy, weight.astype(np.float64)


@KINDS
@settings(deadline=None, max_examples=150)
@given(LABELS)
def test_the_curve_never_falls_and_stays_inside_the_unit_interval(kind, labels) -> None:  # type: ignore[no-untyped-def]
    p, noisy, weight = columns(labels)
    curve = recalibrate(p, noisy, weight, kind=kind)
    grid = np.sort(np.concatenate([np.linspace(0, 1, 101), p, np.nextafter(p, 0), np.nextafter(p, 1).clip(max=1)]))
    values = curve(grid)
    assert (np.diff(values) >= 0).all() and values.dtype == np.float32
    assert values.min() >= 0.99e-4 and values.max() <= 1 - 0.99e-4
    order = np.random.default_rng(0).permutation(len(p))
    assert recalibrate(p[order], noisy[order], weight[order], kind=kind)(grid) == pytest.approx(values, abs=1e-5)
    assert (Recalibration.from_dict(json.loads(json.dumps(curve.to_dict())))(grid) == values).all()


@settings(deadline=None, max_examples=150)
@given(LABELS)
def test_isotonic_is_scikit_learns_with_ties_and_weights_wherever_its_shares_are_not_0_or_1(
    labels: list[tuple[float, bool, int]],
) -> None:
    p, noisy, weight = columns([(round(p, 3), noisy, weight) for p, noisy, weight in labels])
    expected = IsotonicRegression().fit(p, noisy, sample_weight=weight).predict(p)
    inner = (expected > 1e-9) & (expected < 1 - 1e-9)
    got = recalibrate(p, noisy, weight, kind="isotonic")(p)
    assert got[inner] == pytest.approx(expected[inner], abs=1e-6)
    clean, bad = expected <= 1e-9, expected >= 1 - 1e-9
    for part, value in ((clean, got), (bad, 1 - got)):
        if part.any():  # Laplace's rule of succession with as many labels as the weights are worth, or the neighbour
            worth = weight[part].sum() ** 2 / (weight[part] ** 2).sum()
            neighbours = (expected if part is clean else 1 - expected)[~part]
            limit = min([1 / (worth + 2), *neighbours])
            assert value[part] == pytest.approx(limit, abs=2e-6)


def test_isotonic_is_scikit_learns_between_its_knots_too() -> None:
    p, noisy, _ = overconfident(3000)
    p = np.clip(p, 0.05, 0.95)  # tied ends of both classes: no block without either
    ours = recalibrate(p, noisy)
    assert (ours.kind, ours.labelled) == ("isotonic", 3000)
    grid = np.linspace(0, 1, 997)
    expected = IsotonicRegression(out_of_bounds="clip").fit(p, noisy).predict(grid)
    assert ours(grid) == pytest.approx(expected, abs=1e-6)


def test_platt_is_the_minimum_that_scipy_finds_of_the_objective_the_docstring_states() -> None:
    random = np.random.default_rng(1)
    p, noisy, _ = overconfident(60)
    weight = random.integers(1, 30, 60).astype(np.float64)
    z = logit(np.clip(p, 1e-4, 1 - 1e-4))
    effective = weight * weight.sum() / (weight @ weight)

    def objective(theta: Vector) -> float:
        score = theta[0] * z + theta[1]
        prior = ((theta[0] - 1) ** 2 + theta[1] ** 2) / (2 * 2.0**2)
        return float(effective @ (np.logaddexp(0, score) - noisy * score) + prior)

    best = minimize(objective, np.array([1.0, 0.0]), tol=1e-12).x
    ours = recalibrate(p, noisy, weight)
    assert (ours.kind, ours.slope, ours.intercept) == (
        "platt",
        pytest.approx(best[0], abs=1e-5),
        pytest.approx(best[1], abs=1e-5),
    )


def test_with_many_labels_platt_is_plain_logistic_regression_on_the_logit() -> None:
    p, noisy, _ = overconfident(20_000)
    z = logit(np.clip(p, 1e-4, 1 - 1e-4))[:, None]
    expected = LogisticRegression(C=1e9).fit(z, noisy)
    ours = recalibrate(p, noisy, kind="platt")
    assert ours.slope == pytest.approx(expected.coef_[0, 0], rel=2e-3)
    assert ours.intercept == pytest.approx(expected.intercept_[0], rel=2e-3)


@KINDS
def test_recalibration_finds_the_true_probabilities_from_a_stratified_sample(kind) -> None:  # type: ignore[no-untyped-def]
    p, truth, right = overconfident(50_000)
    stratum = strata(p)
    rows = draw_sample(stratum, 4000, p_noise=p)
    labels = Labels(rows, truth[rows], np.empty(0, dtype=np.int64))
    curve = recalibrate(p[rows], truth[rows], sample_weight(stratum, labels), kind=kind)
    assert np.abs(p - right).mean() > 0.07
    assert np.abs(curve(p) - right).mean() < (0.015 if kind == "platt" else 0.03)
    assert curve(p).mean() == pytest.approx(truth.mean(), abs=0.015)


def test_weights_make_it_the_fit_of_the_table_not_of_the_sample() -> None:
    p = np.repeat([0.2, 0.8], 100)
    noisy = np.tile(np.repeat([True, False], [30, 70]), 2)  # 30 % in both halves, but the clean ones stand for more
    weight = np.where(noisy, 1.0, 9.0)
    for kind in ("platt", "isotonic"):
        curve = recalibrate(p, noisy, weight, kind=kind)  # type: ignore[arg-type]
        assert curve(p) == pytest.approx(30 / (30 + 9 * 70), abs=0.01)
    assert recalibrate(p, noisy, np.where(p < 0.5, 0.0, 1.0)).labelled == 100


def test_labels_that_contradict_p_noise_give_everyone_the_same_probability() -> None:
    p = np.linspace(0.01, 0.99, 200)
    curve = recalibrate(p, p < 0.3, kind="platt")
    assert curve.slope == 0
    assert curve(p) == pytest.approx(np.mean(p < 0.3), abs=0.01)


def test_one_label_that_confirms_p_noise_hardly_moves_it() -> None:
    p = np.array([0.01, 0.3, 0.9, 0.99])
    moved = recalibrate(np.array([0.99]), np.array([True]))(p)
    assert moved == pytest.approx(p, abs=0.03) and moved[-1] >= 0.99


@KINDS
@pytest.mark.parametrize(
    "p, noisy",
    [
        ([0.0, 0.0, 1.0, 1.0], [False, False, True, True]),
        ([0.0, 0.0, 1.0, 1.0], [True, True, False, False]),
        ([0.4] * 5, [True, False, False, False, False]),
        ([0.0] * 300, [False] * 300),
        ([0.1, 0.2, 0.9], [True] * 3),
        ([1.0], [False]),
    ],
)
def test_degenerate_labels_give_sober_finite_curves(kind, p, noisy) -> None:  # type: ignore[no-untyped-def]
    values = recalibrate(np.array(p), np.array(noisy), kind=kind)(np.linspace(0, 1, 11))
    assert np.isfinite(values).all() and (values > 0).all() and (values < 1).all() and (np.diff(values) >= 0).all()


def test_a_missing_p_noise_stays_missing_and_shape_is_kept() -> None:
    for kind in ("platt", "isotonic"):
        curve = recalibrate(np.array([0.1, 0.9]), np.array([0, 1]), kind=kind)  # type: ignore[arg-type]
        values = curve(np.array([[np.nan, 0.5], [0.0, 1.0]], dtype=np.float32))
        assert values.shape == (2, 2) and np.isnan(values).tolist() == [[True, False], [False, False]]


def test_auto_is_platt_below_a_thousand_labels() -> None:
    p, noisy, _ = overconfident(1000)
    assert (recalibrate(p[:999], noisy[:999]).kind, recalibrate(p, noisy).kind) == ("platt", "isotonic")


@pytest.mark.parametrize(
    "p, noisy, weight, says",
    [
        ([], [], None, "no label to recalibrate with"),
        ([0.5], [True], [0.0], "no label to recalibrate with"),
        ([0.5, 0.1], [True], None, "one number a label"),
        ([0.5], [True], [-1.0], "negative or no number"),
        ([np.nan], [True], None, "outside"),
        ([1.5], [True], None, "outside"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_in_one_line(
    p: list[float], noisy: list[bool], weight: list[float] | None, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        recalibrate(np.array(p), np.array(noisy), None if weight is None else np.array(weight))


def test_the_gain_judges_by_labels_the_curve_has_not_seen() -> None:
    p, noisy, _ = overconfident(300)
    shuffled = np.random.default_rng(0).permutation(noisy)  # nothing to learn from p: a curve fitted to them overfits
    seen = recalibrate(p, shuffled, kind="isotonic")(p)
    judged = gain(p, shuffled, kind="isotonic")
    assert np.mean((shuffled - seen) ** 2) < np.mean(shuffled) * (1 - np.mean(shuffled)) < judged.after_brier
    assert (judged.folds, judged.groups) == (10, 15)
    assert gain(p, shuffled, kind="isotonic") == judged != gain(p, shuffled, kind="isotonic", seed=1)


def test_the_gain_tells_a_wrong_p_noise_from_a_right_one() -> None:
    _, noisy, right = overconfident(400)
    wrong, sound = gain(expit(logit(right) + 2), noisy), gain(right, noisy)
    assert wrong.after_ece < 0.6 * wrong.before_ece and wrong.after_brier < wrong.before_brier
    assert wrong.before_ece > 2 * wrong.chance_ece
    assert sound.before_ece < 1.6 * sound.chance_ece and sound.after_ece < 1.6 * sound.chance_ece


def test_chance_error_is_that_of_simulated_verdicts_on_right_probabilities() -> None:
    random = np.random.default_rng(2)
    right = random.random(400)
    errors = [gain(right, random.random(400) < right, folds=2) for _ in range(60)]
    assert np.mean([e.before_ece for e in errors]) == pytest.approx(np.mean([e.chance_ece for e in errors]), rel=0.1)


def test_the_errors_are_those_of_a_loop_over_groups_of_equal_number() -> None:
    p, noisy, _ = overconfident(100)
    weight = np.random.default_rng(0).integers(1, 5, 100).astype(np.float64)
    order, expected = np.argsort(p), 0.0
    for group in np.split(order, 5):
        share = np.average(noisy[group], weights=weight[group])
        expected += weight[group].sum() / weight.sum() * abs(share - np.average(p[group], weights=weight[group]))
    found = gain(p, noisy, weight)
    assert (found.groups, found.before_ece) == (5, pytest.approx(expected))
    assert found.before_brier == pytest.approx(np.average((p - noisy) ** 2, weights=weight))


def test_a_single_label_is_judged_by_nothing() -> None:
    only = gain(np.array([0.3]), np.array([True]))
    assert (only.folds, only.before_ece) == (0, pytest.approx(0.7))
    assert np.isnan([only.after_ece, only.after_brier, only.chance_ece]).all()
    assert np.isfinite(gain(np.array([0.3, 0.3]), np.array([True, False])).after_ece)
