"""Unit feature vectors to compute losses of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize


@pytest.fixture(name="unit", scope="session")
def _unit() -> Callable[..., Tensor]:
    """unit(rows, seed) -> (rows, 8) float64 unit rows that ask for a gradient."""

    def unit(rows: int, seed: int = 0) -> Tensor:
        drawn = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return normalize(drawn, dim=1).requires_grad_()

    return unit
