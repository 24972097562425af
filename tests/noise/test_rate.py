"""The noise rate of a table from few labels: strata that differ, a sample of every stratum, an interval that holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, norm

from truepair.errors import UserError
from truepair.noise.labels import Labels
from truepair.noise.rate import draw_sample, noise_rate, sample_weight, strata, stratified_interval

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SAMPLES = (50, 100, 200, 400)


def posterior_table(kind: str, rate: float, n: int = 50_000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p_noise of n pairs and their true probability of being noise, of mean close to `rate`."""
    random = np.random.default_rng(7)
    if kind == "useless":
        return np.where(random.random(n) < 0.7, 0.0, random.random(n)), np.full(n, rate)
    apart = {"informative": 3.0, "weak": 1.5, "overestimating": 3.0}[kind]
    believed = 0.3 if kind == "overestimating" else rate
    loss = random.normal(apart * (random.random(n) < rate), 1)

    def posterior(prior: float) -> NDArray[np.float64]:
        odds: NDArray[np.float64] = prior / (1 - prior) * np.exp(apart * loss - apart**2 / 2)
        return odds / (1 + odds)

    return posterior(believed), posterior(rate)


def simulated(kind: str, rate: float, size: int, times: int = 1000) -> tuple[float, float]:
    """How often the 95 % interval from `size` drawn labels holds the true rate, and its mean width."""
    p, truth = posterior_table(kind, rate)
    stratum = strata(p)
    sizes, shares = np.bincount(stratum), np.bincount(stratum, truth) / np.bincount(stratum)
    labelled = np.bincount(stratum[draw_sample(stratum, size, p_noise=p)], minlength=len(sizes))
    noisy = np.random.default_rng(8).binomial(labelled, shares, size=(times, len(sizes)))
    low, high = stratified_interval(sizes, labelled, noisy)
    actual = truth.mean()
    return float(((low <= actual) & (actual <= high)).mean()), float((high - low).mean())


def labels_of(rows: NDArray[np.int64], noisy: NDArray[np.bool_], unsure: tuple[int, ...] = ()) -> Labels:
    return Labels(rows, noisy, np.array(unsure, dtype=np.int64))


@pytest.mark.parametrize("kind", ["useless", "informative", "weak", "overestimating"])
def test_the_interval_keeps_its_level_whether_p_noise_is_worth_anything_or_not(kind: str) -> None:
    coverage = {(rate, size): simulated(kind, rate, size)[0] for rate in RATES for size in SAMPLES}
    assert min(coverage.values()) >= 0.93, coverage


def test_an_informative_p_noise_makes_the_interval_narrower_than_a_plain_sample_of_as_many_labels() -> None:
    for rate in (0.1, 0.2, 0.35):
        plain = 2 * norm.ppf(0.975) * np.sqrt(rate * (1 - rate) / 200)
        assert simulated("informative", rate, 200)[1] < 0.65 * plain
        assert simulated("useless", rate, 200)[1] < 1.35 * plain


def test_other_levels_hold_too() -> None:
    random = np.random.default_rng(0)
    sizes, labelled, shares = np.array([700, 200, 100]) * 100, np.array([60, 20, 20]), np.array([0.01, 0.2, 0.8])
    noisy = random.binomial(labelled, shares, size=(4000, 3))
    actual = float(sizes @ shares / sizes.sum())
    widths = []
    for level in (0.5, 0.8, 0.99):
        low, high = stratified_interval(sizes, labelled, noisy, level=level)
        assert ((low <= actual) & (actual <= high)).mean() >= level - 0.02
        widths.append((high - low).mean())
    assert widths == sorted(widths)


def test_finite_strata_keep_the_level_when_most_of_their_rows_are_labelled() -> None:
    random = np.random.default_rng(1)
    sizes, bad, labelled = np.array([120, 40, 30]), np.array([6, 10, 24]), np.array([60, 30, 25])
    noisy = random.hypergeometric(bad, sizes - bad, labelled, size=(4000, 3))
    low, high = stratified_interval(sizes, labelled, noisy)
    actual = bad.sum() / sizes.sum()
    assert ((low <= actual) & (actual <= high)).mean() >= 0.93
    without = stratified_interval(sizes * 1000, labelled, noisy)
    assert (high - low).mean() < 0.8 * (without[1] - without[0]).mean()


def test_one_stratum_is_close_to_the_mid_p_interval_of_a_binomial() -> None:
    for x in (0, 1, 3, 20, 80, 100):
        low, high = stratified_interval(np.array([10**9]), np.array([100]), np.array([x]))
        outer = beta.ppf(0.025, x, 101 - x) if x else 0.0, beta.ppf(0.975, x + 1, 100 - x) if x < 100 else 1.0
        assert outer[0] - 0.002 <= low <= x / 100 <= high <= outer[1] + 0.002


def test_noise_and_clean_are_mirror_images() -> None:
    sizes, labelled, noisy = np.array([500, 300, 90]), np.array([30, 9, 4]), np.array([2, 5, 4])
    low, high = stratified_interval(sizes, labelled, noisy)
    mirrored = stratified_interval(sizes, labelled, labelled - noisy)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_a_table_labelled_to_the_last_row_has_no_doubt_left() -> None:
    stratum = np.array([0, 0, 0, 1, 1, -1])
    found = noise_rate(stratum, labels_of(np.arange(5), np.array([True, False, False, True, True])))
    assert (found.rate, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6))


def test_a_stratum_without_labels_may_hold_anything() -> None:
    stratum = np.repeat([0, 1, 2], 1000)
    rows = np.concatenate([np.arange(50), np.arange(2000, 2050)])
    found = noise_rate(stratum, labels_of(rows, np.repeat([False, True], 50)))
    assert found.rate == pytest.approx(0.5)  # the middle third lies between 0 and 1
    assert found.unlabelled == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < 2 / 3 < found.high < 0.71 and found.low > 0.29


def test_the_estimate_is_unbiased_however_unevenly_the_strata_are_sampled() -> None:
    random = np.random.default_rng(3)
    p = np.append(np.zeros(8000), random.random(2000))
    truth = random.random(10_000) < 0.02 + 0.9 * p
    stratum = strata(p)
    rates = []
    for seed in range(100):
        rows = draw_sample(stratum, 120, seed, p_noise=p)
        found = noise_rate(stratum, labels_of(rows, truth[rows]))
        weight = sample_weight(stratum, labels_of(rows, truth[rows]))
        assert weight.sum() == pytest.approx(10_000)
        assert np.average(truth[rows], weights=weight) == pytest.approx(found.rate)
        rates.append(found.rate)
    assert np.mean(rates) == pytest.approx(truth.mean(), abs=4 * np.std(rates) / np.sqrt(100))


def test_unsure_labels_are_counted_and_bounded() -> None:
    stratum = np.repeat([0, 1], 100)
    labels = labels_of(np.arange(95, 105), np.array([True] + [False] * 4 + [True] * 5), (0, 1, 150))
    found = noise_rate(stratum, labels)
    assert (found.labelled, found.unsure) == (10, 3)
    assert found.rate == pytest.approx(0.5 * 0.2 + 0.5 * 1.0)
    assert found.if_unsure_clean == pytest.approx(0.5 * 1 / 7 + 0.5 * 5 / 6)
    assert found.if_unsure_noisy == pytest.approx(0.5 * 3 / 7 + 0.5 * 1.0)


def test_labels_of_rows_without_a_score_count_nowhere() -> None:
    stratum = np.array([-1, 0, 0, 0, 0])
    both = noise_rate(stratum, labels_of(np.array([0, 1, 2]), np.array([True, True, False]), (3,)))
    alone = noise_rate(stratum, labels_of(np.array([1, 2]), np.array([True, False]), (3,)))
    assert both == alone
    assert list(sample_weight(stratum, labels_of(np.array([0, 1, 2]), np.array([True, True, False])))) == [0, 2, 2]


def test_no_verdict_or_a_row_too_many_is_an_error_that_says_so() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(UserError, match="no pair of the sample is labelled"):
        noise_rate(np.zeros(5, dtype=np.int64), labels_of(nothing, nothing.astype(bool), (2,)))
    with pytest.raises(UserError, match="row 5 is labelled, but there are only 5 rows"):
        noise_rate(np.zeros(5, dtype=np.int64), labels_of(np.array([5]), np.array([True])))
    with pytest.raises(UserError, match="outside"):
        strata(np.array([0.2, 1.2]))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.none() | st.sampled_from([0.0, 1e-9, 0.3, 1.0]) | st.floats(0, 1), max_size=60), st.integers(1, 12))
def test_strata_rise_with_p_noise_and_none_is_empty(values: list[float | None], count: int) -> None:
    p = np.array([np.nan if value is None else value for value in values])
    stratum = strata(p, count)
    assert ((stratum == -1) == np.isnan(p)).all()
    used = np.unique(stratum[stratum >= 0])
    assert list(used) == list(range(len(used))) and len(used) <= count
    seen = p[~np.isnan(p)]
    order = np.argsort(seen, kind="stable")
    assert (np.diff(stratum[stratum >= 0][order]) >= 0).all()
    assert all(len({*stratum[p == value]}) == 1 for value in seen)


def test_many_pairs_of_p_noise_zero_are_one_stratum_and_leave_the_others_to_the_rest() -> None:
    random = np.random.default_rng(0)
    p = np.append(10.0 ** -random.uniform(4, 12, 70_000), random.random(30_000)).astype(np.float32)
    stratum = strata(p)
    assert len(np.unique(stratum)) == 10
    assert np.unique(stratum[:70_000]).tolist() == [0]
    assert np.bincount(stratum)[1:].min() > 1500


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 120), st.integers(0, 3), st.data())
def test_a_sample_has_the_size_asked_for_and_rows_of_every_stratum(
    sizes: list[int], size: int, seed: int, data: st.DataObject
) -> None:
    stratum = np.repeat(np.arange(-1, len(sizes)), [3, *sizes])
    stratum = stratum[np.random.default_rng(seed).permutation(len(stratum))]
    p = np.where(stratum < 0, np.nan, data.draw(st.sampled_from([0.0, 0.1, 1.0])))
    rows = draw_sample(stratum, size, seed, p_noise=p)
    assert len(rows) == min(size, sum(sizes)) and (np.diff(rows) > 0).all()
    assert (stratum[rows] >= 0).all()
    assert (rows == draw_sample(stratum, size, seed, p_noise=p)).all()
    if size >= np.count_nonzero(sizes):
        assert set(stratum[rows]) == {h for h, count in enumerate(sizes) if count}


def test_every_row_of_a_stratum_is_drawn_as_often_as_any_other() -> None:
    stratum = np.repeat([0, 1], [30, 10])
    times = np.zeros(40)
    for seed in range(2000):
        times[draw_sample(stratum, 12, seed)] += 1
    for part in (times[:30], times[30:]):
        assert part == pytest.approx(part.mean(), abs=4.5 * np.sqrt(part.mean()))


def test_labels_go_where_the_verdict_is_most_open() -> None:
    stratum, p = np.repeat([0, 1, 2], 1000), np.repeat([0.0, 0.5, 1.0], 1000)
    drawn = np.bincount(stratum[draw_sample(stratum, 120, p_noise=p)])
    assert drawn[1] > 1.2 * drawn[0] and drawn[0] == pytest.approx(drawn[2], abs=1)
    assert np.bincount(stratum[draw_sample(stratum, 120)]) == pytest.approx(40)
