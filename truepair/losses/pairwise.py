"""THE primitive: per-row losses over all pairs of a global batch, softmax or sigmoid, for any target.

Rows are this rank's, columns the whole batch's (gathered with gradient). A method takes the rows it gets, weights
them and averages with `weighted_mean`; it never sees a rank. Memory: ROWS × columns at a time, recomputed in backward.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from truepair.losses.distributed import all_gather, rank
from truepair.losses.targets import Own, Target, Tile

ROWS = 1_024

NO_PAIR = -1  # the pair of a queue's columns

RowLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # logits, targets, weights (R, M) -> (R,)


def softmax_rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    target: Target | None = None,
    *,
    weight: Target | None = None,
    queue: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each row with its target: -Σ_j q_ij log p_ij, p_ij ∝ w_ij exp(scale · queries_i · keys_j).

    Args:
        queries: (N, D) unit rows of this rank, any float type.
        keys: (N', D) unit rows of this rank on the other side; N and N' are B and B·K in either order (K captions of
            an image lie together), so the pair of a row is its place // K.
        scale: () positive, 1/τ.
        target: q, default `Own`, shared evenly by K captions. Rows need not sum to 1: a row of zeros costs 0.
        weight: w ≥ 0, how much a column counts in the row's softmax; 0 takes it out, default 1. Its target must be 0
            there too.
        queue: (Q, D) further columns, alike on every rank and of no pair (a momentum queue); they follow the batch's.
    Returns:
        (N,) float32 (float64 for float64 features), differentiable in queries, keys and scale.
    Source: InfoNCE as in CLIP (Radford et al., 2021) for `Own`; soft targets, weights and queue in one form, ours.
    """
    target = target or Own(share=min(1.0, queries.shape[0] / keys.shape[0]))
    return _rows(queries, keys, scale, None, target, weight, queue, _cross_entropy)


def sigmoid_rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    target: Target | None = None,
    *,
    weight: Target | None = None,
    queue: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of every pair of each row, summed: -Σ_j w_ij [y_ij log σ(z_ij) + (1-y_ij) log σ(-z_ij)].

    z = scale · queries · keysᵀ + bias; y = 1 for a match; for y in {0, 1} and w = 1 this is Σ_j softplus(∓z_ij),
    SigLIP's row (Zhai et al., 2023, eq. 1). Arguments and result as `softmax_rows`; bias: () or None; a weight of 0
    leaves a pair out.
    """
    return _rows(queries, keys, scale, bias, target or Own(), weight, queue, _binary_cross_entropy)


def _cross_entropy(logits: Tensor, q: Tensor, w: Tensor | None) -> Tensor:
    if w is not None:
        logits = (logits + w.log()).masked_fill(w == 0, torch.finfo(logits.dtype).min)
    return q.sum(dim=1) * logits.logsumexp(dim=1) - (q * logits).sum(dim=1)


def _binary_cross_entropy(logits: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    terms = F.softplus(logits) - y * logits
    return (terms if w is None else w * terms).sum(dim=1)


def _rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    target: Target,
    weight: Target | None,
    queue: Tensor | None,
    row_loss: RowLoss,
) -> Tensor:
    count, width = queries.shape[0], keys.shape[0]
    pairs = min(count, width)
    if queries.shape[1:] != keys.shape[1:] or pairs == 0 or max(count, width) % pairs:
        raise ValueError(f"rows {tuple(queries.shape)} and columns {tuple(keys.shape)} are not B and B·K unit vectors")
    exact = torch.float64 if queries.dtype == torch.float64 else torch.float32
    queries, scale, keys = queries.to(exact), scale.to(exact), all_gather(keys.to(exact))
    row_pairs = (torch.arange(count, device=queries.device) * pairs) // count + rank() * pairs
    column_pairs = (torch.arange(len(keys), device=queries.device) * pairs) // width
    if queue is not None:
        keys = torch.cat([keys, queue.to(exact)])
        column_pairs = F.pad(column_pairs, (0, len(queue)), value=NO_PAIR)

    def block(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, start: int) -> Tensor:
        rows = slice(start, min(start + ROWS, count))
        tile = Tile(rows, slice(0, len(keys)), row_pairs[rows], column_pairs, exact)
        with torch.autocast(queries.device.type, enabled=False):
            logits = scale * queries[rows] @ keys.T  # (R, M)
            if bias is not None:
                logits = logits + bias.to(exact)
            counts = None if weight is None else weight.tile(tile).to(exact)
            return row_loss(logits, target.tile(tile).to(exact), counts)

    starts = range(0, count, ROWS)
    if len(starts) == 1:
        return block(queries, keys, scale, bias, 0)
    blocks = [
        checkpoint(block, queries, keys, scale, bias, start, use_reentrant=False, preserve_rng_state=False)
        for start in starts
    ]
    return torch.cat(blocks)
