"""From captions to token ids, as short as the longest caption of the batch."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.pairs import draws

MULTIPLE = 8  # lengths a tensor core likes, and few enough of them for a compiler
MAX_CHARACTERS = 4_096  # far beyond any context length; bounds the tokenizer's work on a hostile caption

Tokenizer = Callable[[list[str]], Tensor]  # n texts -> (n, context_length) int64, padded at the right


def trim(tokens: Tensor, pad_id: int) -> Tensor:
    """Drop the columns of (n, L) token ids that are padding in every row, down to a multiple of 8."""
    used = (tokens != pad_id).any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    return tokens[:, : min(-(-longest // MULTIPLE) * MULTIPLE, tokens.shape[1])]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], pad_id: int | None) -> Tensor:
    """(n, L) token ids, trimmed to the longest text; `pad_id` None keeps the full context (for towers that read it)."""
    tokens = tokenizer([text[:MAX_CHARACTERS] for text in texts]).to(torch.int64)
    return tokens if pad_id is None else trim(tokens, pad_id)


def draw_captions(
    captions: Sequence[Sequence[str]], rows: npt.NDArray[np.int64], count: int, seed: int, epoch: int
) -> list[str]:
    """B·count captions, row-major: `count` (K) of each row, distinct where it has as many, the first at random."""
    starts = draws.bits(rows, seed, epoch, draws.CAPTION)
    return [
        texts[(int(start) + k) % len(texts)]
        for texts, start in zip(captions, starts.tolist(), strict=True)
        for k in range(count)
    ]


def first_captions(captions: Sequence[Sequence[str]], count: int) -> list[str]:
    """B·count captions, row-major: the first `count` (K) of each row, from the start again where it has fewer."""
    return [texts[k % len(texts)] for texts in captions for k in range(count)]
