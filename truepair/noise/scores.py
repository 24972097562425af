"""How well a pair matches, from its features: the cosine, and the cosine less what image and caption have for all."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEGATIVES = 4096  # pairs every pair is compared with (ours; the paper averages over ten batches of the teacher's size)
CHUNK = 1024


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """Row-wise cosine of image (n, D) and text (n, D), both of unit rows: (n,) float32, the "CLIP score"."""
    pieces = zip(torch.split(image, CHUNK), torch.split(text, CHUNK), strict=True)
    return torch.cat([(i * t).sum(1) for i, t in pieces]).float()


def neg_clip_loss(
    image: Tensor,
    text: Tensor,
    scale: float,
    *,
    negatives: int = NEGATIVES,
    seed: int = 0,
    sample: Tensor | None = None,
) -> Tensor:
    """The negative CLIP loss of every pair in units of cosine: (n,) float32, at most 0; higher matches better.

    s_i = c_ii - τ/2 · (log Σ_j exp(c_ij/τ) + log Σ_j exp(c_ji/τ)), τ = 1/scale, j over the pair itself and a fixed
    sample of `negatives` pairs (all, if there are fewer), drawn with `seed`. So -s_i·scale is the loss CLIP gives the
    pair in a batch with that sample.
    sample: (m,) int64 ascending, those pairs in place of drawn ones.
    image (n, D), text (n, D): unit rows on one device. Memory beside them: CHUNK x negatives scores.

    Source: negCLIPLoss, arXiv 2405.19547 (one fixed sample in place of ten random batches: ours).
    """
    if sample is None:
        sample = torch.from_numpy(_sample(len(image), negatives, seed))
    sample = sample.to(image.device)  # (m,)
    texts, images = text[sample], image[sample]
    scores = []
    for start in range(0, len(image), CHUNK):
        i, t = image[start : start + CHUNK], text[start : start + CHUNK]
        own = (i * t).sum(1)  # (b,)
        rows = torch.arange(start, start + len(i), device=image.device)
        itself = rows[:, None] == sample  # (b, m)
        normalisers = [
            torch.logsumexp(torch.cat([own[:, None], (a @ b.T).masked_fill(itself, -torch.inf)], dim=1) * scale, dim=1)
            for a, b in ((i, texts), (t, images))
        ]
        scores.append(own - (normalisers[0] + normalisers[1]) / (2 * scale))
    return torch.cat(scores).float()


def _sample(n: int, size: int, seed: int) -> NDArray[np.integer[Any]]:
    generator = np.random.Generator(np.random.Philox(seed))
    return np.sort(generator.choice(n, size=min(n, size), replace=False, shuffle=False))
