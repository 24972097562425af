"""What images look like, in a few bytes each: a perceptual hash, the colours of the quarters, how much there is to see.

The hash is pHash's idea (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"): the signs
of an image's lowest frequencies against their median. Ours are the 64 lowest but the mean, in the zigzag order of JPEG,
and a bit is set only where a frequency stands out above the median: those that a symmetric or blank picture lacks are
all near it, on this side or that by chance (ours).
It sees brightness alone, so colours stand beside it (ours): a red and a green square have one hash.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

MEANING = 2  # of what is stored of looks; to be raised where another look at the same pixels would differ
SIDE = 32  # pixels of the small picture that is looked at
BITS = 64
HIGHEST = 10  # frequency
STANDS_OUT, OF_ALL = 4.0, 0.03  # steps of 255, and of the frequencies' root mean square: JPEG moves them by less (ours)
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


@dataclass(frozen=True)
class Looks:
    """Of n images. Where `seen` is False the others mean nothing.

    seen: (n,) bool, decoded. hash: (n,) uint64. colours: (n, 12) uint8, means of the four quarters, red, green, blue.
    spread: (n,) float32, standard deviation of the pixels of the channel that varies most, in steps of 255.
    """

    seen: NDArray[np.bool_]
    hash: NDArray[np.uint64]
    colours: NDArray[np.uint8]
    spread: NDArray[np.float32]

    @classmethod
    def unseen(cls, n: int) -> "Looks":
        """Of n images, none decoded yet."""
        return cls(np.zeros(n, bool), np.zeros(n, np.uint64), np.zeros((n, 12), np.uint8), np.zeros(n, np.float32))

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, chosen: NDArray[np.int64]) -> "Looks":
        return Looks(self.seen[chosen], self.hash[chosen], self.colours[chosen], self.spread[chosen])

    def put(self, numbers: list[int], pixels: Tensor) -> None:
        """Look at images `numbers`, (b, 3, S, S) uint8, as a model sees them."""
        self.hash[numbers], self.colours[numbers], self.spread[numbers] = look(pixels)
        self.seen[numbers] = True


def look(pixels: Tensor) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.float32]]:
    """Hash (b,), colours (b, 12) and spread (b,) of (b, 3, S, S) uint8 on any device. Memory: a float32 copy of it."""
    exact = pixels.float()
    small = adaptive_avg_pool2d(exact, SIDE)  # (b, 3, 32, 32)
    brightness = torch.tensordot(small, small.new_tensor(BRIGHTNESS), dims=([1], [0]))
    waves = small.new_tensor(_WAVES)
    spectrum = waves @ brightness @ waves.T  # (b, 11, 11)
    lowest = spectrum.flatten(1)[:, torch.from_numpy(_ZIGZAG).to(small.device)]  # (b, 64)
    least = (OF_ALL * lowest.square().mean(dim=1, keepdim=True).sqrt()).clamp(min=STANDS_OUT)
    bits = lowest > lowest.median(dim=1, keepdim=True).values + least
    hashed = (bits.long() << torch.arange(BITS, device=bits.device)).sum(dim=1)
    colours = adaptive_avg_pool2d(small, 2).flatten(1).round().to(torch.uint8)
    spread = exact.flatten(2).std(dim=2, correction=0).amax(dim=1)
    return hashed.cpu().numpy().view(np.uint64), colours.cpu().numpy(), spread.cpu().numpy()


def _waves() -> NDArray[np.float32]:
    """(11, 32): the first rows of the orthonormal discrete cosine transform (type II)."""
    u, x = np.arange(HIGHEST + 1)[:, None], np.arange(SIDE)
    waves = np.cos(np.pi * (2 * x + 1) * u / (2 * SIDE)) * np.sqrt(np.where(u == 0, 1, 2) / SIDE)
    return waves.astype(np.float32)


def _zigzag() -> NDArray[np.int64]:
    """(64,) places in a flattened (11, 11) spectrum: by the sum of both frequencies, without the mean."""
    u, v = np.divmod(np.arange((HIGHEST + 1) ** 2), HIGHEST + 1)
    return np.argsort(u + v, kind="stable")[1 : BITS + 1]


_WAVES, _ZIGZAG = _waves(), _zigzag()
