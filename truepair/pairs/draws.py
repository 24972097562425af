"""Random numbers as a pure function of what they are for: the same on any rank, worker, or resumed run."""

import numpy as np
import numpy.typing as npt

# Streams: two uses of one row in one epoch never share their numbers.
CROP, CAPTION, SUBSTITUTE, SYNTHETIC, GENERATE, COMPLETE, METHOD = 1, 2, 3, 4, 5, 6, 7


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): a bijection of 64-bit words with good avalanche."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(rows: npt.NDArray[np.int64], *key: int) -> npt.NDArray[np.uint64]:
    """64 random bits per row (B,), a function of the row number and of the integers `key` (seed, epoch, stream, …)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _splitmix64(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return _splitmix64(state ^ _splitmix64(rows.astype(np.uint64)))


def uniform(rows: npt.NDArray[np.int64], count: int, *key: int) -> npt.NDArray[np.float64]:
    """(B, count) numbers in [0, 1), a function of row number and key."""
    drawn = np.stack([bits(rows, *key, column) for column in range(count)], axis=1)
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(*key: int) -> np.random.Generator:
    """A NumPy generator that is a function of the integers `key`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([part & 0xFFFFFFFF for part in key])))
