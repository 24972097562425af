"""A text tower that can be shown a gap: whether it reads both ways, and the token that stands for a missing word."""

from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from truepair.errors import UserError
from truepair.models.dual import DualEncoder

SPREAD = 0.02  # standard deviation of a new row: open_clip's and BERT's of a token embedding


def reads_both_ways(model: DualEncoder) -> bool:
    """Whether a word knows those after it: the text tower has no causal mask (`no_causal_mask`, or an encoder of
    transformers). A causal one cannot learn to fill a gap from what follows."""
    text: Any = model.clip.text
    if isinstance(text, HFTextEncoder):
        return not getattr(text.transformer.config, "is_decoder", False)
    return isinstance(text, TextTransformer) and text.attn_mask is None


def word_embedding(model: DualEncoder) -> Tensor:
    """(V, w) the text tower's token embedding: the live parameter, which `Fusion.fill` is tied to.

    Raises UserError for a text tower that is neither open_clip's nor of transformers.
    """
    weight: Tensor = _embedding(model).weight
    return weight


def mask_token(model: DualEncoder) -> int | None:
    """The id that stands for a missing word; None: there is none yet (`reserve_mask`).

    The tokenizer's own where it has one, else the first id that it never gives, if the embedding has room for it.
    """
    token = _wanted(model)
    return token if token < len(word_embedding(model)) else None


def reserve_mask(model: DualEncoder) -> int:
    """`mask_token`, made if there is none: the token embedding grows by a row, N(0, 0.02), and keeps the others.

    The model's config grows with it, so its export loads in open_clip alone; every feature is what it was. Call it
    before the optimiser, a twin or DDP see the parameter, with the same random state on every rank. In a tower pooled
    at its highest id (`argmax`) a gap takes the place of the end: use the hidden states of such captions only.
    Raises UserError where no row can be added: towers of transformers, CoCa, or an embedding without all of the
    tokenizer's words.
    """
    token = mask_token(model)
    if token is not None:
        return token
    embedding, token = _embedding(model), _wanted(model)
    text: Any = model.clip.text
    if not isinstance(text, TextTransformer) or hasattr(model.clip, "text_decoder") or token != len(embedding.weight):
        raise UserError(
            f"model {model.name!r} has no mask token, and its embedding of {len(embedding.weight)} tokens cannot be "
            "given one; take a model whose tokenizer has one, or whose text tower is open_clip's own"
        )
    with torch.no_grad():
        row = torch.empty_like(embedding.weight[:1]).normal_(std=SPREAD)
        grown = torch.cat([embedding.weight, row])
    embedding.weight = nn.Parameter(grown, requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = text.vocab_size = model.clip.vocab_size = token + 1
    model.config = model.config | {"text_cfg": model.config["text_cfg"] | {"vocab_size": token + 1}}
    return token


def _embedding(model: DualEncoder) -> Any:
    text: Any = model.clip.text
    if isinstance(text, TextTransformer):
        return text.token_embedding
    if isinstance(text, HFTextEncoder):
        return text.transformer.get_input_embeddings()
    kind = type(text).__name__
    raise UserError(f"the text tower of model {model.name!r} ({kind}) has no token embedding that could learn to mask")


def _wanted(model: DualEncoder) -> int:
    """The tokenizer's own mask, or the first id beyond its words."""
    tokenizer: Any = getattr(model.tokenizer, "tokenizer", model.tokenizer)  # open_clip wraps those of transformers
    own = getattr(tokenizer, "mask_token_id", None)
    if own is not None:
        return int(own)
    return len(tokenizer) if hasattr(tokenizer, "__len__") else int(tokenizer.vocab_size)
