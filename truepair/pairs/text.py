"""From captions to token ids, as short as the longest caption of the batch."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

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
    raw: Sequence[Sequence[str]],
    rows: npt.NDArray[np.int64],
    count: int,
    seed: int,
    epoch: int,
    synthetic: Sequence[Sequence[str]] | None = None,
) -> list[str]:
    """B·count captions, row-major: `count` (K) of each row, distinct where it has as many, the first at random.

    With the rows' `synthetic` captions, the first of K is a raw one and the others are synthetic, from a random one on;
    a row that has only raw or only synthetic captions gives those.
    """
    starts = draws.bits(rows, seed, epoch, draws.CAPTION)
    return _taken(raw, synthetic, count, starts, draws.bits(rows, seed, epoch, draws.SYNTHETIC))


def first_captions(
    raw: Sequence[Sequence[str]], count: int, synthetic: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """B·count captions, row-major: as `draw_captions`, but the first ones in place of random ones."""
    zeros = np.zeros(len(raw), np.uint64)
    return _taken(raw, synthetic, count, zeros, zeros)


def _taken(
    raw: Sequence[Sequence[str]],
    synthetic: Sequence[Sequence[str]] | None,
    count: int,
    starts: npt.NDArray[np.uint64],
    synthetic_starts: npt.NDArray[np.uint64],
) -> list[str]:
    """`count` captions a row, in a circle from its start on; (B,) starts of raw and of synthetic ones."""
    taken = []
    others = synthetic if synthetic is not None else [()] * len(raw)
    for texts, more, start, more_start in zip(raw, others, starts.tolist(), synthetic_starts.tolist(), strict=True):
        if texts and more:
            taken.append(texts[start % len(texts)])
            taken += [more[(more_start + k) % len(more)] for k in range(count - 1)]
        else:
            pool = texts or more
            taken += [pool[(start + k) % len(pool)] for k in range(count)]
    return taken


def caption_ids(texts: Sequence[str]) -> Tensor:
    """(n,) int64, equal where two texts are: 64 bits of BLAKE2b, the same in every process.

    Among a million different texts two share an id with a probability of 3e-8.
    """
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))
