"""Hard negatives: for every row one column of another group, drawn by the softmax of the row, tile by tile."""

from collections.abc import Sequence

import torch
from torch import Tensor

from truepair.losses.random import uniform
from truepair.losses.tiles import spans
from truepair.losses.walk import TILE

NONE = -1  # the column of a row that has no column of another group
LEAST = 2.0**-25  # half the step of the uniform numbers, in place of 0


@torch.no_grad()
def drawn_negatives(
    left: Tensor,
    right: Tensor,
    scale: Tensor | float,
    own: Sequence[tuple[Tensor, Tensor]],
    seeds: tuple[Tensor, Tensor],
    stream: int,
) -> Tensor:
    """(N,) int64: of every row a column j with probability e^s_ij / Σ_k e^s_ik over all k that are not its own.

    left (N, D), right (M, D): unit rows; s = scale · left · rightᵀ. own: pairs of ids (N,), (M,); where one of them is
    equal the column is the row's own. seeds: (N,), (M,) int64 of rows and columns: the draw is a function of them, so
    ranks that share rows or columns agree. `NONE` for a row all of whose columns are its own.
    In float32 whatever the surrounding precision.
    Source: multinomial of the softmax with the own index zeroed, ALBEF's and NEVER's code; by Gumbel's maximum, without
    a matrix, and without own groups: ours.
    """
    best = torch.full((len(left),), -torch.inf, device=left.device)
    found = torch.full((len(left),), NONE, dtype=torch.int64, device=left.device)
    height, width = TILE.get(left.device.type, TILE["cuda"])
    with torch.autocast(left.device.type, enabled=False):
        for r in spans(0, len(left), height):
            for c in spans(0, len(right), width):
                logits = scale * (left[r].float() @ right[c].float().T)
                drawn = uniform(seeds[0][r, None], stream, seeds[1][None, c]).clamp_min_(LEAST)
                logits -= drawn.log_().neg_().log_()  # + Gumbel's noise, -log(-log u)
                for of_row, of_column in own:
                    logits.masked_fill_(of_row[r, None] == of_column[None, c], -torch.inf)
                top, place = logits.max(dim=1)
                higher = top > best[r]
                found[r] = torch.where(higher, place + c.start, found[r])
                best[r] = torch.maximum(best[r], top)
    return found
