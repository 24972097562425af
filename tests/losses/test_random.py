"""A pair's random numbers are a function of its seed and of what they are for, on any device and in any shape."""

import numpy as np
import torch

from truepair.losses.random import uniform
from truepair.pairs import draws

SEEDS = torch.from_numpy(draws.bits(np.arange(4000), 1, 2, draws.METHOD).view(np.int64))


def test_they_are_splitmix64s_as_the_pair_tables_are() -> None:
    """Written twice, in NumPy's unsigned integers and in torch's signed ones: the same bits."""
    theirs = draws._splitmix64(draws._splitmix64(SEEDS.numpy().view(np.uint64)) ^ np.uint64(3)) >> np.uint64(40)
    assert (uniform(SEEDS, 3) * 2**24).long().tolist() == theirs.astype(np.int64).tolist()


def test_they_are_uniform_in_0_to_1() -> None:
    drawn = uniform(SEEDS[:, None], 1, torch.arange(25))
    assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, bins=50, min=0, max=1)
    chi_squared = ((counts - 2000).square() / 2000).sum().item()
    assert 20 < chi_squared < 90  # 49 expected, standard deviation 10


def test_a_number_does_not_depend_on_what_is_drawn_beside_it() -> None:
    whole = uniform(SEEDS[:8, None], 1, SEEDS[None, 8:16])
    assert torch.equal(whole[3, 2:5], uniform(SEEDS[3], 1, SEEDS[10:13]))


def test_streams_positions_and_neighbours_are_unlike() -> None:
    drawn = torch.stack([uniform(SEEDS, *key) for key in [(1,), (2,), (1, 0), (1, 1), (1, 0, 1)]])
    correlation = torch.corrcoef(torch.cat([drawn, drawn[:1].roll(1, dims=1)]))
    assert correlation.fill_diagonal_(0).abs().max() < 0.06  # four standard deviations
