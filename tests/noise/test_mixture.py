"""The mixture is scikit-learn's converged fit, its posterior rises with the loss, and what means nothing is said."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from truepair.noise import Mixture, finite_range, fit, fit_losses, histogram

PAIRS = 20_000
SHAPES = ("well apart", "close", "wide noise", "wide clean", "few noisy", "most noisy", "skewed", "exponential")


def losses_of(shape: str) -> np.ndarray:
    random = np.random.default_rng(SHAPES.index(shape))

    def two(rate: float, clean: tuple[float, float], noisy: tuple[float, float]) -> np.ndarray:
        is_noise = random.random(PAIRS) < rate
        return np.where(is_noise, random.normal(*noisy, PAIRS), random.normal(*clean, PAIRS))

    match shape:
        case "well apart":
            losses = two(0.4, (1, 0.5), (6, 1))
        case "close":
            losses = two(0.4, (3, 1), (5.6, 1))
        case "wide noise":
            losses = two(0.2, (2, 0.7), (3.5, 2))
        case "wide clean":
            losses = two(0.3, (4, 2), (8, 0.5))
        case "few noisy":
            losses = two(0.05, (2, 1), (7, 1))
        case "most noisy":
            losses = two(0.9, (2, 0.7), (6, 1))
        case "skewed":
            losses = np.where(random.random(PAIRS) < 0.3, random.normal(6, 0.8, PAIRS), random.gamma(1, 0.5, PAIRS))
        case _:
            losses = random.exponential(1, PAIRS)
    return losses.astype(np.float32)


@pytest.mark.parametrize("reg", [1e-6, 5e-4])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_converged_fit_of_scikit_learn(shape: str, reg: float) -> None:
    losses = losses_of(shape)
    low, high = finite_range(losses)
    ours = fit(histogram(losses, low, high), reg=reg)

    scaled = ((losses.astype(np.float64) - low) / (high - low))[:, None]
    theirs = GaussianMixture(2, tol=1e-10, max_iter=5000, reg_covar=reg, random_state=0).fit(scaled)
    order = np.argsort(theirs.means_[:, 0])
    assert ours.converged and theirs.converged_ and not ours.degenerate
    assert (np.array(ours.means) - low) / (high - low) == pytest.approx(theirs.means_[order, 0], abs=1e-3)
    assert np.array(ours.stds) / (high - low) == pytest.approx(np.sqrt(theirs.covariances_[order, 0, 0]), abs=1e-3)
    assert ours.weights == pytest.approx(theirs.weights_[order], abs=1e-3)
    assert ours.log_likelihood + math.log(high - low) == pytest.approx(theirs.score(scaled), abs=1e-4)

    between = (losses >= ours.means[0]) & (losses <= ours.means[1])  # where no wider tail has to be straightened
    posterior = theirs.predict_proba(scaled[between])[:, order[1]]
    assert ours.posterior(losses[between]) == pytest.approx(posterior, abs=1e-3)


def test_coarse_bins_give_the_fit_of_fine_ones_because_they_keep_mean_and_variance() -> None:
    losses = losses_of("well apart")
    low, high = finite_range(losses)
    coarse, fine = (fit(histogram(losses, low, high, bins=bins)) for bins in (24, 4096))
    assert np.array(coarse.means) == pytest.approx(fine.means, abs=2e-4 * (high - low))
    assert np.array(coarse.stds) == pytest.approx(fine.stds, abs=2e-4 * (high - low))


def test_a_sound_fit_is_kept_although_a_few_far_outliers_alone_would_be_likelier() -> None:
    mixture = fit_losses(np.append(losses_of("well apart"), np.full(100, 200.0)))
    assert mixture.degenerate == ""
    assert mixture.weights == pytest.approx((0.6, 0.4), abs=0.03)


def test_recovers_the_distribution_the_losses_were_drawn_from() -> None:
    mixture = fit_losses(losses_of("wide noise"))
    assert mixture.weights == pytest.approx((0.8, 0.2), abs=0.02)
    assert mixture.means == pytest.approx((2, 3.5), abs=0.2)
    assert mixture.stds == pytest.approx((0.7, 2), abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_never_falls_and_is_bayes_rule_between_the_means(shape: str) -> None:
    losses = losses_of(shape)
    mixture = fit_losses(losses)
    posterior = mixture.posterior(np.sort(losses))
    assert posterior.dtype == np.float32
    assert np.diff(posterior).min() >= -1e-6

    grid = np.linspace(*mixture.means, 50)
    clean, noisy = (
        weight * norm.pdf(grid, mean, std)
        for weight, mean, std in zip(mixture.weights, mixture.means, mixture.stds, strict=True)
    )
    assert mixture.posterior(grid) == pytest.approx(noisy / (clean + noisy), abs=1e-6)
    assert mixture.density(grid) == pytest.approx(np.stack([clean, noisy]))


def test_a_very_well_fitted_pair_never_looks_noisy_although_the_noisy_mode_is_wider() -> None:
    mixture = Mixture((0.8, 0.2), (2.0, 3.0), (0.2, 3.0), -10.0, 10.0, 0.0, 1, True, "")
    raw = mixture.density(np.array([-9.0]))
    assert raw[1] > raw[0]
    assert mixture.posterior(np.array([-9.0]))[0] < 0.05


def test_unseen_pairs_have_probability_zero_and_infinities_that_of_the_ends() -> None:
    losses = losses_of("well apart")
    mixture = fit_losses(losses)
    odd = np.array([np.nan, np.inf, -np.inf, mixture.high, mixture.low], dtype=np.float32)
    posterior = mixture.posterior(odd)
    assert posterior[0] == 0
    assert posterior[1] == posterior[3] > 0.99
    assert posterior[2] == posterior[4] < 0.01
    assert mixture.posterior(odd.reshape(5, 1)).shape == (5, 1)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.zeros(0), "fewer than 32 losses"),
        (np.full(1000, np.nan), "fewer than 32 losses"),
        (np.full(1000, np.inf), "fewer than 32 losses"),
        (np.arange(31.0), "fewer than 32 losses"),
        (np.append(np.full(100, np.inf), 1.0), "all finite losses are equal"),
        (np.full(1000, 2.5), "all finite losses are equal"),
        (np.append(np.full(1000, 1.0), 2.0), "a component weighs less than 0.01"),
    ],
)
def test_a_fit_that_says_nothing_names_its_reason_and_accuses_nobody(losses: np.ndarray, reason: str) -> None:
    mixture = fit_losses(losses)
    assert mixture.degenerate == reason
    assert not mixture.posterior(np.append(losses, 1e6)).any()
    assert np.isfinite(mixture.density(np.array([0.0, 1.0]))).all()


def test_one_mode_that_the_regularised_fit_cannot_divide_is_degenerate() -> None:
    losses = np.random.default_rng(0).normal(3, 1, PAIRS)
    mixture = fit(histogram(losses, *finite_range(losses)), reg=5e-4)
    assert mixture.degenerate == "means closer than 0.001 of the range"
    assert not mixture.posterior(losses).any()


def test_losses_that_share_one_bin_of_a_wide_range_count_as_equal() -> None:
    assert fit(histogram(np.full(100, 0.5), 0.0, 1e6)).degenerate == "all finite losses are equal"


def test_goes_through_json_and_back() -> None:
    for losses in (losses_of("close"), np.zeros(0)):
        mixture = fit_losses(losses)
        assert Mixture.from_dict(json.loads(json.dumps(mixture.to_dict(), allow_nan=False))) == mixture


@settings(deadline=None, max_examples=60)
@given(
    arrays(
        np.float32, st.integers(0, 80), elements=st.floats(-100, 100, width=32) | st.sampled_from([math.nan, math.inf])
    )
)
def test_any_losses_give_probabilities_that_never_fall(losses: np.ndarray) -> None:
    posterior = fit_losses(losses).posterior(losses)
    assert ((posterior >= 0) & (posterior <= 1)).all()
    assert not posterior[np.isnan(losses)].any()
    seen = ~np.isnan(losses)
    rising = posterior[seen][np.argsort(losses[seen], kind="stable")]
    assert (np.diff(rising) >= -1e-6).all()
