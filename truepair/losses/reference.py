"""The pairwise losses in plain matrices of one process: what the tiled, distributed form must equal."""

import torch
from torch import Tensor
from torch.nn import functional as F


def own_pairs(n: int, m: int) -> Tensor:
    """(n, m) bool: row i and column j belong to the same pair, where n and m are B and B·K in either order."""
    pairs = min(n, m)
    return (torch.arange(n) * pairs // n)[:, None] == (torch.arange(m) * pairs // m)[None, :]


def softmax_rows(queries: Tensor, keys: Tensor, scale: Tensor, target: Tensor | None = None) -> Tensor:
    """-Σ_j q_ij log p_ij for each row (N,); target (N, M), default the own pairs, evenly."""
    logits = scale * queries @ keys.T
    if target is None:
        own = own_pairs(*logits.shape).to(logits.dtype)
        target = own / own.sum(dim=1, keepdim=True)
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1)


def sigmoid_rows(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None = None, target: Tensor | None = None
) -> Tensor:
    """-Σ_j [y_ij log σ(z_ij) + (1-y_ij) log σ(-z_ij)] for each row (N,); target (N, M), default the own pairs."""
    logits = scale * queries @ keys.T + (0 if bias is None else bias)
    target = own_pairs(*logits.shape).to(logits.dtype) if target is None else target
    return -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)).sum(dim=1)
