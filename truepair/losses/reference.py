"""The pairwise losses in plain matrices of one process: what the tiled, distributed form must equal.

logits, guide (n, m): of rows with columns. own (n, m) bool: `own_pairs`. q, y, w (n, m): target, labels, weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def own_pairs(n: int, m: int) -> Tensor:
    """(n, m) bool: row i and column j belong to the same pair, where n and m are B and B·K in either order."""
    pairs = min(n, m)
    return (torch.arange(n) * pairs // n)[:, None] == (torch.arange(m) * pairs // m)[None, :]


def cross_entropy(logits: Tensor, q: Tensor) -> Tensor:
    """-Σ_j q_ij log p_ij (n,); a column of logit -inf is out."""
    log_p = F.log_softmax(logits, dim=1)
    return -(q * log_p.masked_fill(logits == -torch.inf, 0.0)).sum(dim=1)


def divergence(logits: Tensor, q: Tensor) -> Tensor:
    """KL(q‖p) (n,)."""
    return cross_entropy(logits, q) + torch.xlogy(q, q).sum(dim=1)


def reverse_divergence(logits: Tensor, q: Tensor, epsilon: float = 1e-8) -> Tensor:
    """KL(p‖q + ε) (n,)."""
    log_p = F.log_softmax(logits, dim=1)
    finite = log_p.masked_fill(logits == -torch.inf, 0.0)
    return (log_p.exp() * (finite - (q + epsilon).log())).sum(dim=1)


def complement(logits: Tensor, q: Tensor) -> Tensor:
    """-Σ_j (1 - q_ij) log(1 - p_ij) (n,); log(1 - p_ij) is the log-sum-exp of the others less that of all."""
    eye = torch.eye(logits.shape[1], dtype=torch.bool)
    others = logits[:, None, :].masked_fill(eye, -torch.inf).logsumexp(dim=2)  # (n, m)
    return -((1 - q) * (others - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1)


def binary_cross_entropy(logits: Tensor, y: Tensor, w: Tensor | float = 1.0) -> Tensor:
    """-Σ_j w_ij [y_ij log σ(z_ij) + (1 - y_ij) log σ(-z_ij)] (n,)."""
    return -(w * (y * F.logsigmoid(logits) + (1 - y) * F.logsigmoid(-logits))).sum(dim=1)


def alone(own: Tensor) -> Tensor:
    """Own pairs share the row."""
    return own.double() / own.sum(dim=1, keepdim=True)


def softened(guide: Tensor, own: Tensor, share: Tensor | float) -> Tensor:
    """(1 - share) · own + share · softmax of the guide."""
    return (1 - share) * alone(own) + share * guide.softmax(dim=1)


def relation(guide: Tensor, own: Tensor) -> Tensor:
    """Softmax of the guide without the own pairs."""
    return guide.masked_fill(own, -torch.inf).softmax(dim=1)


def sharpened(guide: Tensor, own: Tensor, share: Tensor | float) -> Tensor:
    """The softened target's square, normalised, then 1 for own pairs."""
    square = softened(guide, own, share) ** 2
    return (square / square.sum(dim=1, keepdim=True)).masked_fill(own, 1.0)


def fine_grained(rows: Tensor, columns: Tensor) -> Tensor:
    """Tokens (n, P, d), (m, L, d), zeros being padding -> (n, m) mean over real tokens of the best cosine."""
    out = torch.zeros(len(rows), len(columns), dtype=rows.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            a, b = row[row.any(dim=1)], column[column.any(dim=1)]
            if len(a) and len(b):
                out[i, j] = (a @ b.T).amax(dim=1).mean()
    return out
