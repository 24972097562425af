"""From captions to token ids, as short as the longest caption of the batch."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.pairs import draws

MULTIPLE = 8  # lengths a tensor core likes, and few enough of them for a compiler
MAX_CHARACTERS = 4_096  # far beyond any context length; bounds the tokenizer's work on a hostile caption

Completion = Literal["both", "sample", "replace"]  # how synthetic captions stand in for raw ones (`wanted_synthetic`)
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


def wanted_synthetic(
    rows: npt.NDArray[np.int64],
    count: int,
    completion: Completion = "both",
    p_noise: npt.NDArray[Any] | None = None,
    *,
    replace_above: float = 0.5,
    seed: int = 0,
    epoch: int = 0,
) -> npt.NDArray[np.bool_]:
    """(B, K) bool: which of the `count` (K) captions of a row are to be synthetic ones, if it has such.

    "both": all but the first (ours, for methods that take several captions of an image). "sample": each with the
    probability p_noise (B,) of its row, as a function of row, seed, epoch and k (NLIP's noise-completion; how it draws
    is ours). "replace": all of the rows with p_noise >= `replace_above` (ours). A p_noise that is NaN counts as 0.
    """
    if completion == "both":
        return np.tile(np.arange(count) > 0, (len(rows), 1))
    if p_noise is None:
        raise ValueError(f"completion {completion!r} needs p_noise")
    believed = np.nan_to_num(np.asarray(p_noise, np.float64), nan=0.0)[:, None]
    if completion == "replace":
        return np.tile(believed >= replace_above, (1, count))
    return draws.uniform(rows, count, seed, epoch, draws.COMPLETE) < believed


def draw_captions(
    raw: Sequence[Sequence[str]],
    rows: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.bool_],
    seed: int,
    epoch: int,
    synthetic: Sequence[Sequence[str]] | None = None,
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """B·K captions, row-major, and (B·K,) bool: which of them are synthetic.

    wanted: (B, K) bool, which should be (`wanted_synthetic`); a row that has only raw or only `synthetic` captions
    gives those. Those of one kind are the row's from a random one on, so distinct as far as it has them.
    """
    starts = draws.bits(rows, seed, epoch, draws.CAPTION)
    return _taken(raw, synthetic, wanted, starts, draws.bits(rows, seed, epoch, draws.SYNTHETIC))


def first_captions(
    raw: Sequence[Sequence[str]],
    wanted: npt.NDArray[np.bool_],
    synthetic: Sequence[Sequence[str]] | None = None,
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """As `draw_captions`, but of each kind the row's first ones in place of random ones."""
    zeros = np.zeros(len(raw), np.uint64)
    return _taken(raw, synthetic, wanted, zeros, zeros)


def _taken(
    raw: Sequence[Sequence[str]],
    synthetic: Sequence[Sequence[str]] | None,
    wanted: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.uint64],
    synthetic_starts: npt.NDArray[np.uint64],
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Captions of each kind in a circle, from the row's start of that kind (B,) on."""
    others = synthetic if synthetic is not None else [()] * len(raw)
    counts, more_counts = (np.array([len(texts) for texts in lists], np.uint64)[:, None] for lists in (raw, others))
    is_synthetic = (wanted & (more_counts > 0)) | (counts == 0)
    before = np.where(is_synthetic, is_synthetic.cumsum(axis=1), (~is_synthetic).cumsum(axis=1)) - 1  # of its kind
    length = np.where(is_synthetic, more_counts, counts)
    start = np.where(is_synthetic, synthetic_starts[:, None], starts[:, None])
    places = (start % length + before.astype(np.uint64)) % length
    taken = [
        (more if is_more else texts)[place]
        for texts, more, kinds, of_row in zip(raw, others, is_synthetic.tolist(), places.tolist(), strict=True)
        for is_more, place in zip(kinds, of_row, strict=True)
    ]
    return taken, is_synthetic.reshape(-1)


def caption_ids(texts: Sequence[str]) -> Tensor:
    """(n,) int64, equal where two texts are: 64 bits of BLAKE2b, the same in every process.

    Among a million different texts two share an id with a probability of 3e-8.
    """
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))
