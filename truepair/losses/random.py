"""Random numbers on the device as a pure function of what they are for: alike on any ranks and in micro-batches."""

import torch
from torch import Tensor

# Streams: two uses of a pair's seed in one step never share their numbers.
SPLIT, OTHER_IMAGE, OTHER_TEXT, GAP, REPLACE = 1, 2, 3, 4, 5


def uniform(seeds: Tensor, *key: int | Tensor) -> Tensor:
    """Numbers in [0, 1), float32, of the shape that seeds and keys broadcast to; a function of these alone.

    seeds: int64, of pairs (`Pairs.seeds`). key: stream, position, the seeds of another pair, …; numbers or int64.
    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014), as `pairs.draws`.
    """
    state = _splitmix64(seeds)
    for part in key:
        state = _splitmix64(state ^ part)
    return _shifted(state, 40).to(torch.float32) * 2.0**-24  # as many bits as float32 holds


def _splitmix64(x: Tensor) -> Tensor:
    x = x + -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number, and so on; int64 wraps around
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """x >> count with zeros moved in."""
    return (x >> count) & ((1 << (64 - count)) - 1)
