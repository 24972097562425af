"""The beta quantile is SciPy's, and its own at the ends of what intervals ask of it."""

import numpy as np
import pytest
from scipy.stats import beta

from truepair.noise.beta import beta_quantile


@pytest.mark.parametrize("probability", [0.005, 0.025, 0.5, 0.9, 0.975, 0.995])
def test_the_quantile_is_scipys_from_less_than_one_event_to_millions(probability: float) -> None:
    each = np.array([5e-4, 0.02, 0.5, 1.0, 1.7, 30.0, 900.0, 4e4, 3e6])
    a, b = (grid.ravel() for grid in np.meshgrid(each, each))
    assert beta_quantile(probability, a, b) == pytest.approx(beta.ppf(probability, a, b), abs=1e-7)


def test_where_both_kinds_are_many_the_normal_distribution_stands_in() -> None:
    a, b = np.array([2e5, 1e7]), np.array([3e6, 2e5])
    assert beta_quantile(0.975, a, b) == pytest.approx(beta.ppf(0.975, a, b), abs=1e-6)


def test_no_quantile_asked_for_is_none_given() -> None:
    assert beta_quantile(0.975, np.empty(0), np.empty(0)).shape == (0,)
