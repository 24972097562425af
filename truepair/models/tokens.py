"""What the towers know of the parts: a feature for each patch of an image and each word of a caption."""

from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.models.dual import DualEncoder


def image_tokens(model: DualEncoder, images: Tensor) -> Tensor:
    """(b, 3, S, S) uint8 -> (b, P, w) float32 unit rows, one a patch or cell of the last feature map, row by row.

    They are in the tower's width w, before pooling and projection: comparable with other images' tokens only.
    Normed by the tower's last layer norm where open_clip's own `output_tokens` are; class and register tokens left out.
    Raises UserError for towers that have none.
    """
    return F.normalize(_seen(model, images, pooled=False)[1], dim=-1)


def encode_image_with_tokens(model: DualEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """(b, 3, S, S) uint8 -> (b, D) float32 unit rows as `model.encode_image`, and (b, P, w) float32 tokens.

    The tokens are those of `image_tokens`, not normalised. One forward pass of the tower gives both, with gradient.
    Raises UserError for towers that have no tokens.
    """
    features, cells = _seen(model, images, pooled=True)
    return F.normalize(features.float(), dim=-1), cells


def token_width(model: DualEncoder) -> int:
    """w of the image tower's tokens. Raises UserError for towers that have none."""
    visual: Any = model.clip.visual
    if isinstance(visual, VisionTransformer):
        return int(visual.transformer.width)
    if isinstance(visual, ModifiedResNet):
        return int(visual.attnpool.k_proj.in_features)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "num_features"):
        return int(visual.trunk.num_features)
    raise _without_tokens(model)


def _seen(model: DualEncoder, images: Tensor, *, pooled: bool) -> tuple[Tensor, Tensor]:
    """(b, D) pooled and projected features, empty unless `pooled`, and (b, P, w) float32 tokens."""
    pixels = (images.float() - model.mean) / model.std
    features, cells = model.as_compiled(_tower)(model.clip.visual, pixels, pooled)
    if cells is None:
        raise _without_tokens(model)
    return features, cells.float()


def _tower(visual: Any, pixels: Tensor, pooled: bool) -> tuple[Tensor, Tensor | None]:
    """`_seen` of normalised pixels, by open_clip's image tower; None for one that has no tokens."""
    features = pixels.new_empty(0)
    cells: Tensor | None = None
    if isinstance(visual, VisionTransformer):
        normed = visual.attn_pool is None and not visual.final_ln_after_pool
        found = visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=normed, intermediates_only=not pooled, output_fmt="NLC"
        )
        cells = found["image_intermediates"][0]
        features = found.get("image_features", features)
    elif isinstance(visual, ModifiedResNet):
        found = visual.forward_intermediates(pixels, indices=1, intermediates_only=not pooled)
        cells = found["image_intermediates"][0].flatten(2).mT
        features = found.get("image_features", features)
    elif isinstance(visual, TimmModel):
        last = visual.trunk.forward_features(pixels)
        cells = _cells_of_timm(visual.trunk, last)
        if pooled and cells is not None:
            features = visual.head(visual.trunk.forward_head(last))
    return features, cells


def _without_tokens(model: DualEncoder) -> UserError:
    kind = type(getattr(model.clip.visual, "trunk", model.clip.visual)).__name__
    return UserError(f"the image tower of model {model.name!r} ({kind}) gives no patch tokens; use its pooled features")


def _cells_of_timm(trunk: Any, found: Any) -> Tensor | None:
    """What a timm model pools: tokens after the class and register tokens, or a map with channels first or last."""
    if not isinstance(found, Tensor):
        return None
    if found.ndim == 3 and found.shape[2] == trunk.num_features:
        return found[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if found.ndim == 4 and found.shape[1] == trunk.num_features:
        return found.flatten(2).mT
    if found.ndim == 4 and found.shape[3] == trunk.num_features:
        return found.flatten(1, 2)
    return None


def text_tokens(model: DualEncoder, tokens: Tensor) -> Tensor:
    """(n, L) token ids -> (n, L, w) float32 unit rows of the words; rows of start, end and padding are zero.

    They are in the tower's width w, after its last layer norm, before projection: comparable with other texts' tokens
    only. In a causal tower a word knows those before it. `.any(dim=-1)` is the mask of the words; a caption may have
    none at all. L is that of the batch: other batches, and other ranks, may have another.
    Raises UserError for towers that have none.
    """
    text: Any = model.clip.text
    if isinstance(text, TextTransformer):
        hidden = _hidden(model, text, tokens)
    elif isinstance(text, HFTextEncoder):
        attended = (tokens != text.config.pad_token_id).long()
        hidden = text.transformer(input_ids=tokens, attention_mask=attended).last_hidden_state
    else:
        kind = type(text).__name__
        raise UserError(
            f"the text tower of model {model.name!r} ({kind}) gives no word tokens; use its pooled features"
        )
    return F.normalize(hidden.float(), dim=-1) * words(model, tokens)[..., None]


def words(model: DualEncoder, tokens: Tensor) -> Tensor:
    """(n, L) token ids -> (n, L) bool: neither start, end, padding nor another special token of the tokenizer.

    CLIP's tokenizer pads with an id that is also "!"; what comes after the end of the text is padding.
    """
    return said(model.tokenizer, tokens)


def said(tokenizer: Any, tokens: Tensor) -> Tensor:
    """`words` of an open_clip tokenizer without its model."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
    end = getattr(tokenizer, "eot_token_id", None)
    ended = torch.zeros_like(tokens, dtype=torch.bool) if end is None else (tokens == end).cumsum(dim=1) > 0
    return ~torch.isin(tokens, special) & ~ended


def _hidden(model: DualEncoder, text: TextTransformer, tokens: Tensor) -> Tensor:
    """(n, L, w) of open_clip's text tower, its causal mask cut to the length as in `DualEncoder.encode_text`."""
    length = tokens.shape[1]
    layers = _LastLayer(text)
    if model.pad_id is None or length == text.attn_mask.shape[0]:
        last: Tensor = layers(tokens)
    else:
        last = torch.func.functional_call(layers, {"text.attn_mask": text.attn_mask[:length, :length]}, (tokens,))
    return last


class _LastLayer(nn.Module):
    """`forward_intermediates` as a forward, for `functional_call`."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.text.forward_intermediates(
            tokens, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        last: Tensor = found["text_intermediates"][0]
        return last
