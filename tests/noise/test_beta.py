"""The beta quantile is SciPy's, and its own at the ends of what intervals ask of it."""

import numpy as np
import pytest
from scipy.stats import beta

from truepair.noise.beta import beta_quantile


@pytest.mark.parametrize("probability", [0.005, 0.5, 0.9, 0.995])
def test_the_quantile_is_scipys_to_1e_8_from_less_than_one_event_to_ten_millions(probability: float) -> None:
    each = np.array([5e-4, 0.5, 1.7, 900.0, 4e4, 2.9e5, 3e5, 1e7])
    a, b = (grid.ravel() for grid in np.meshgrid(each, each))
    assert beta_quantile(probability, a, b) == pytest.approx(beta.ppf(probability, a, b), rel=0, abs=1e-8)


def test_no_quantile_asked_for_is_none_given() -> None:
    assert beta_quantile(0.975, np.empty(0), np.empty(0)).shape == (0,)
