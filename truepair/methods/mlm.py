"""Masked language modelling with the picture in sight: words are hidden, the fusion encoder says what stood there."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.losses.random import GAP, REPLACE, uniform
from truepair.models.dual import DualEncoder
from truepair.models.fusion import Fusion
from truepair.models.masked_text import word_embedding
from truepair.models.tokens import attended, encode_text_with_tokens, words

MASKED, RANDOM = 0.8, 0.1  # of the gaps: the mask token, any word; the others keep theirs (BERT, NEVER's code)


@dataclass(frozen=True)
class Gaps:
    """Captions with gaps. tokens: (b, L) as the towers see them; at: (b, L) bool; answers: (m,) what stood there, as
    places in the logits of `fill_gaps`."""

    tokens: Tensor
    at: Tensor
    answers: Tensor


def with_gaps(
    model: DualEncoder, tokens: Tensor, seeds: Tensor, *, share: float, mask: int, vocabulary: Tensor, whole: bool
) -> Gaps:
    """Hide each word of (b, L) captions with probability `share`; a function of `seeds` (b,).

    mask: id of the mask token. vocabulary: (v,) ascending ids, all that may be asked for or stand in for a word; words
    outside of it are never hidden. whole: answers are ids, among all tokens, rather than places in the vocabulary.
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    seeds = seeds[:, None]
    places = torch.searchsorted(vocabulary, tokens).clamp_max_(len(vocabulary) - 1)
    at = words(model, tokens) & (vocabulary[places] == tokens) & (uniform(seeds, GAP, place) < share)
    kind = uniform(seeds, REPLACE, place)
    drawn = (uniform(seeds, REPLACE, place, 1) * len(vocabulary)).long()
    shown = torch.where(at & (kind < MASKED), mask, tokens)
    shown = torch.where(at & (kind >= MASKED) & (kind < MASKED + RANDOM), vocabulary[drawn], shown)
    return Gaps(shown, at, (tokens if whole else places)[at])


def fill_gaps(model: DualEncoder, fusion: Fusion, gaps: Gaps, image: Tensor, vocabulary: Tensor | None) -> Tensor:
    """(m, v) float32 logits of what stood at each gap, among all tokens without a vocabulary.

    image: (b, P, w) the pictures' tokens.
    """
    hidden = encode_text_with_tokens(model, gaps.tokens)[1]
    fused = fusion(hidden, attended(model, gaps.tokens), image)
    return fusion.fill(fused[gaps.at], word_embedding(model), vocabulary)


def masked_losses(logits: Tensor, taught: Tensor | None, gaps: Gaps) -> dict[str, Tensor]:
    """Losses of the gaps in each caption, float32, means over the caption's gaps, 0 without any.

    logits: (m, v) the student's; taught: (m, v) the twin's, or None.
    Returns mlm (b,) cross-entropy with the words that stood there; mlm_taught (b,) with the twin's softmax;
    gaps (b,) how many; hits (b,) how many of them the student's best word fills.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    nll = -log_p.gather(1, gaps.answers[:, None]).squeeze(1)  # (m,)
    soft = nll if taught is None else -(taught.float().softmax(dim=1) * log_p).sum(dim=1)
    count = gaps.at.sum(dim=1)
    row = gaps.at.nonzero()[:, 0]

    def of_captions(values: Tensor) -> Tensor:
        return values.new_zeros(len(count)).index_add(0, row, values) / count.clamp_min(1)

    hits = torch.zeros_like(count).index_add(0, row, (log_p.argmax(dim=1) == gaps.answers).long())
    return {"mlm": of_captions(nll), "mlm_taught": of_captions(soft), "gaps": count, "hits": hits}
