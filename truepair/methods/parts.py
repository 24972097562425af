"""A sample's whole against parts: of an image its cells, of a text its words. TCL's local losses, which NEVER keeps."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.losses import Columns, LogPartition, all_gather, pairwise_losses, weighted_mean
from truepair.losses.distributed import evened

CELLS = 4  # a picture's parts are the means of CELLS x CELLS of its cells; NEVER's code


def local_loss(whole: Tensor, parts: Tensor, scale: Tensor) -> Tensor:
    """-log softmax of each own part among itself and the parts of all other samples, for the whole of each sample.

    whole (B, D): unit rows of the student. parts (B, P, D): unit rows by the twin, of any P; zeros are none. scale ()
    1/τ. Mean over all parts there are, () as `weighted_mean` gives it.
    """
    parts = evened(parts)
    there = parts.any(dim=2)  # (B, P)
    others = LogPartition(weight=Columns(all_gather(there.flatten())), others=True)
    ((rest,), _) = pairwise_losses(whole, parts.flatten(0, 1), scale, rows=[others])  # (B,) log Σ over others' parts
    own = scale * torch.einsum("bd,bpd->bp", whole, parts)
    losses = F.softplus(rest[:, None] - own).masked_fill(~there, 0.0)  # -log e^own / (e^own + e^rest)
    count = there.sum(dim=1)
    return weighted_mean(losses.sum(dim=1) / count.clamp_min(1), count)


def averaged(cells: Tensor) -> Tensor:
    """(b, P, w) cells of a square picture, row by row -> (b, 16, w) means; as they are if not square, or not more."""
    side = math.isqrt(cells.shape[1])
    if side**2 != cells.shape[1] or side <= CELLS:
        return cells
    grid = cells.mT.reshape(len(cells), -1, side, side)
    return F.adaptive_avg_pool2d(grid, CELLS).flatten(2).mT
