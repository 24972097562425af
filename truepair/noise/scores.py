"""How well a pair matches, from its features: the cosine, and the cosine less what image and caption have for all."""

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


def neg_clip_loss(image: Tensor, text: Tensor, scale: float, *, negatives: int = NEGATIVES, seed: int = 0) -> Tensor:
    """The negative CLIP loss of every pair in units of cosine: (n,) float32, at most 0; higher matches better.

    s_i = c_ii - τ/2 · (log Σ_j exp(c_ij/τ) + log Σ_j exp(c_ji/τ)), τ = 1/scale, j over the pair itself and a fixed
    sample of `negatives` pairs (all, if there are fewer), drawn with `seed`. So -s_i·scale is the loss CLIP gives the
    pair in a batch with that sample.
    image (n, D), text (n, D): unit rows on one device. Memory beside them: CHUNK x negatives scores.

    Source: negCLIPLoss, arXiv 2405.19547 (one fixed sample in place of ten random batches: ours).
    """
    sample = torch.from_numpy(sampled(len(image), negatives, seed)).to(image.device)  # (m,) ascending
    numbers = torch.arange(len(image), device=image.device)
    return neg_clip_loss_against(image, text, numbers, image[sample], text[sample], sample, scale)


def neg_clip_loss_against(
    image: Tensor, text: Tensor, numbers: Tensor, images: Tensor, texts: Tensor, sample: Tensor, scale: float
) -> Tensor:
    """`neg_clip_loss` of n pairs against m others: images (m, D), texts (m, D), their numbers `sample` (m,).

    numbers: (n,) of the pairs; one that is in the sample is not its own negative.
    """
    scores = []
    for start in range(0, len(image), CHUNK):
        i, t = image[start : start + CHUNK], text[start : start + CHUNK]
        own = (i * t).sum(1)  # (b,)
        itself = numbers[start : start + CHUNK, None] == sample  # (b, m)
        normalisers = [
            torch.logsumexp(torch.cat([own[:, None], (a @ b.T).masked_fill(itself, -torch.inf)], dim=1) * scale, dim=1)
            for a, b in ((i, texts), (t, images))
        ]
        scores.append(own - (normalisers[0] + normalisers[1]) / (2 * scale))
    return torch.cat(scores).float()


def sampled(n: int, size: int, seed: int) -> NDArray[np.int64]:
    """Ascending numbers of min(n, size) of n pairs, drawn with `seed`: those that each is compared with."""
    generator = np.random.Generator(np.random.Philox(seed))
    return np.sort(generator.choice(n, size=min(n, size), replace=False, shuffle=False))
