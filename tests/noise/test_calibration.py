"""Detector figures are scikit-learn's where it has them, and NaN where they mean nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from truepair.errors import UserError
from truepair.noise import detection, reliability


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
def test_auroc_and_average_precision_are_scikit_learns_with_ties(rows: list[tuple[int, bool]]) -> None:
    score = np.array([value / 8 for value, _ in rows])
    truth = np.array([noisy for _, noisy in rows])
    figures = detection(score, truth)
    assert (figures.n, figures.rate) == (len(rows), truth.mean())
    if truth.all() or not truth.any():
        assert math.isnan(figures.auroc) and math.isnan(figures.average_precision)
        assert math.isnan(figures.precision_at_rate)
        assert not math.isnan(figures.ece)
    else:
        assert figures.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert figures.average_precision == pytest.approx(average_precision_score(truth, score), abs=1e-12)


def test_scores_of_any_scale_are_ranked_but_have_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    truth = random.random(3000) < 0.3
    score = random.normal(truth * 2.0, 1).astype(np.float32)
    figures = detection(score, truth)
    assert figures.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert math.isnan(figures.ece)
    most = np.argsort(-score)[: truth.sum()]
    assert figures.precision_at_rate == pytest.approx(truth[most].mean())


def test_infinite_scores_that_tie_are_one_threshold() -> None:
    score = np.array([np.inf, np.inf, 0.0, -np.inf])
    figures = detection(score, np.array([True, False, True, False]))
    assert figures.auroc == pytest.approx(roc_auc_score([1, 0, 1, 0], [2, 2, 1, 0]))


def test_precision_at_rate_averages_over_the_order_of_tied_scores() -> None:
    score = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    truth = np.array([True, True, False, False, False, True])
    draws = []
    random = np.random.default_rng(0)
    for _ in range(4000):
        order = random.permutation(6)
        draws.append(truth[order][np.argsort(-score[order], kind="stable")][:3].mean())
    assert detection(score, truth).precision_at_rate == pytest.approx(np.mean(draws), abs=0.01)
    assert detection(score, truth).precision_at_rate == pytest.approx((1 + 2 * 0.25) / 3)


def test_calibration_error_is_that_of_a_plain_loop_over_bins() -> None:
    random = np.random.default_rng(1)
    score = np.concatenate([random.random(2000), [0.0, 1.0]])
    truth = random.random(len(score)) < score**2
    expected = 0.0
    for index in range(15):
        inside = (score >= index / 15) & ((score < (index + 1) / 15) if index < 14 else (score <= 1))
        expected += inside.mean() * abs(truth[inside].mean() - score[inside].mean())
    assert detection(score, truth).ece == pytest.approx(expected, abs=1e-12)
    assert detection(truth.astype(np.float64), truth).ece == 0


def test_reliability_is_the_calibration_curve_of_scikit_learn() -> None:
    random = np.random.default_rng(2)
    score = random.beta(0.5, 1, 5000) * 0.8  # the uppermost bins stay empty
    truth = random.random(5000) < score
    curve = reliability(score, truth, bins=10)
    accuracy, confidence = calibration_curve(truth, score, n_bins=10)
    used = curve.counts > 0
    assert curve.accuracy[used] == pytest.approx(accuracy)
    assert curve.confidence[used] == pytest.approx(confidence)
    assert np.isnan(curve.accuracy[~used]).all() and not used.all()
    assert curve.counts.sum() == 5000


def test_no_pairs_have_no_figures() -> None:
    figures = detection(np.zeros(0), np.zeros(0, dtype=bool))
    assert figures.n == 0
    assert all(math.isnan(value) for value in (figures.auroc, figures.average_precision, figures.ece, figures.rate))


@pytest.mark.parametrize(
    ("score", "truth", "line"),
    [
        (np.array([0.5, np.nan]), np.array([True, False]), "1 of 2 noise scores are NaN"),
        (np.array([0.5, 0.6]), np.array([True]), "one number a pair"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused_in_one_line(score: np.ndarray, truth: np.ndarray, line: str) -> None:
    with pytest.raises(UserError, match=line):
        detection(score, truth)
    with pytest.raises(UserError, match="outside"):
        reliability(np.array([1.5]), np.array([True]))


@pytest.mark.parametrize(
    ("truth", "line"),
    [
        (np.array([0.0, 1.0, np.nan, np.nan]), "is nan in row 2 of the 4 rows"),
        (np.array([0, 1, 1, -1]), "is -1 in row 3 of the 4 rows"),
        (np.array([0.5, 1, 0, 0]), "is 0.5 in row 0 of the 4 rows"),
        (np.array(["no", "yes", "no", "no"]), "holds <U3"),
    ],
)
def test_a_truth_that_is_not_yes_or_no_is_refused(truth: np.ndarray, line: str) -> None:
    for figures in (detection, reliability):
        with pytest.raises(UserError, match=line) as error:
            figures(np.linspace(0, 1, 4), truth)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.uint8, np.float32])
def test_truth_may_be_boolean_or_zeros_and_ones(kind: type) -> None:
    truth = np.array([0, 1, 0, 1]).astype(kind)
    assert detection(np.array([0.1, 0.9, 0.6, 0.5]), truth).auroc == 0.75
