"""Random numbers that are a function of what they are for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.pairs import draws

ROWS = np.arange(20_000)


def test_numbers_are_uniform_over_rows() -> None:
    drawn = draws.uniform(ROWS, 4, 7, 3, draws.CROP)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # χ² of 19 degrees of freedom: 43.8 at 0.1 %


def test_every_bit_is_a_fair_coin() -> None:
    bits = draws.bits(ROWS, 0, 0, draws.CAPTION)
    ones = ((bits[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 0.02


@pytest.mark.parametrize("other", [(8, 3, 1), (7, 4, 1), (7, 3, 2), (3, 7, 1), (7, 1, 3), (7, 3, 1, 0), (7, 3)])
def test_another_key_gives_independent_numbers(other: tuple[int, ...]) -> None:
    first, second = draws.uniform(ROWS, 1, 7, 3, 1)[:, 0], draws.uniform(ROWS, 1, *other)[:, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_columns_and_neighbouring_rows_are_independent() -> None:
    drawn = draws.uniform(ROWS, 2, 7, 3, 1)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 0.03


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30), st.integers(0, 2**63), st.integers(0, 1000))
def test_a_rows_number_does_not_depend_on_its_company(rows: list[int], seed: int, epoch: int) -> None:
    together = draws.uniform(np.array(rows), 3, seed, epoch, draws.CROP)
    for row, drawn in zip(rows, together, strict=True):
        assert (draws.uniform(np.array([row]), 3, seed, epoch, draws.CROP)[0] == drawn).all()


def test_a_generator_is_a_function_of_its_key() -> None:
    assert draws.generator(1, 2).random() == draws.generator(1, 2).random()
    assert draws.generator(1, 2).random() != draws.generator(2, 1).random()
