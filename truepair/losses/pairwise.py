"""THE primitive: losses over all pairs of a global batch, in tiles, both directions at once, on any number of ranks.

Left are this rank's images, right all ranks' texts (gathered with gradient); or any other two sides. A method takes the
losses of the rows and columns that are its rank's and averages them with `weighted_mean`; it never sees a rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from truepair.losses.distributed import all_gather
from truepair.losses.objectives import BinaryCrossEntropy, Complement, CrossEntropy, Objective
from truepair.losses.targets import Normalised, Own, Target
from truepair.losses.walk import Plan, Walk


def pairwise_losses(
    left: Tensor,
    right: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    rows: Sequence[Objective] = (),
    columns: Sequence[Objective] = (),
    left_queue: Tensor | None = None,
    right_queue: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Losses of every row (left→right) and of every column (right→left) of logits = scale · left · rightᵀ + bias.

    Args:
        left, right: (N, D), (M, D) unit rows of this rank, any float type; N and M are B and B·K in either order (the
            K captions of a pair lie together), and all ranks have the same.
        scale, bias: () 1/τ, positive; logit bias or None.
        rows, columns: what to sum over each row, over each column. Several share the logits.
        left_queue, right_queue: (Q, D) a momentum queue, alike on every rank: further left sides that only columns
            see, further right sides that only rows see. No gradient.
    Returns:
        A (N,) loss for each of `rows`, an (M,) loss for each of `columns`; float32 (float64 for float64 features),
        differentiable once in left, right, scale and bias.
    Raises ValueError for shapes that are not B and B·K unit vectors.
    """
    count, width = left.shape[0], right.shape[0]
    pairs = min(count, width)
    if left.shape[1:] != right.shape[1:] or pairs == 0 or max(count, width) % pairs:
        raise ValueError(f"{tuple(left.shape)} and {tuple(right.shape)} are not B and B·K vectors of one size")
    plan = Plan(pairs, count // pairs, width // pairs, tuple(rows), tuple(columns), left_queue, right_queue)
    scale, bias = _number(scale, left), None if bias is None else _number(bias, left)
    losses: tuple[Tensor, ...] = Walk.apply(left, all_gather(right), scale, bias, plan)
    return losses[: len(rows)], losses[len(rows) :]


def _number(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value), device=like.device)


def softmax_pairs(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    i2t: Target | Normalised | None = None,
    t2i: Target | Normalised | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every image's row (N,) and of every text's (M,) with their targets, default the own pairs.

    Shapes as `pairwise_losses`. With the defaults, the mean of both over the batch is CLIP's loss.
    """
    (of_image,), (of_text,) = pairwise_losses(
        image, text, scale, rows=[CrossEntropy(i2t or Own())], columns=[CrossEntropy(t2i or Own())]
    )
    return of_image, of_text


def softmax_rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    target: Target | Normalised | None = None,
    *,
    weight: Target | None = None,
    queue: Tensor | None = None,
) -> Tensor:
    """One direction of `softmax_pairs`: -Σ_j q_ij log p_ij of each query (N,); weight as in `CrossEntropy`."""
    (losses,), _ = pairwise_losses(
        queries, keys, scale, rows=[CrossEntropy(target or Own(), weight)], right_queue=queue
    )
    return losses


def sigmoid_rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    target: Target | Normalised | None = None,
    *,
    weight: Target | None = None,
    queue: Tensor | None = None,
) -> Tensor:
    """Every pair of a row a yes-or-no question, summed over the row (N,): `BinaryCrossEntropy`.

    target: the probability of a match, default 1 for own pairs. The mean over the batch is SigLIP's loss.
    """
    objective = BinaryCrossEntropy(target or Own(normalise=False), weight)
    (losses,), _ = pairwise_losses(queries, keys, scale, bias, rows=[objective], right_queue=queue)
    return losses


def complement_rows(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    target: Target | Normalised | None = None,
    *,
    queue: Tensor | None = None,
) -> Tensor:
    """-Σ_j (1 - q_ij) log(1 - p_ij) of each query (N,), default q the own pairs: `Complement`, negative learning."""
    (losses,), _ = pairwise_losses(
        queries, keys, scale, rows=[Complement(target or Own(normalise=False))], right_queue=queue
    )
    return losses


def per_pair_mean(i2t: Tensor, t2i: Tensor) -> Tensor:
    """½(i2t + t2i) of each pair (B,): either direction's losses, (B,) or (B·K,), averaged over the pair's captions."""
    pairs = min(len(i2t), len(t2i))
    return (i2t.view(pairs, -1).mean(dim=1) + t2i.view(pairs, -1).mean(dim=1)) / 2
