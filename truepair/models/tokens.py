"""What the towers know of the parts: a feature for each patch of an image and each word of a caption."""

from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.layers import AttentionPool2d, RotAttentionPool2d
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


def encode_image_with_tokens(model: DualEncoder, images: Tensor, *, prefix: bool = False) -> tuple[Tensor, Tensor]:
    """(b, 3, S, S) uint8 -> (b, D) float32 unit rows as `model.encode_image`, and (b, P, w) float32 tokens.

    The tokens are those of `image_tokens`, not normalised. One forward pass of the tower gives both, with gradient.
    prefix: `prefix_tokens` more of them come first, the class and register tokens of a transformer.
    Raises UserError for towers that have no tokens.
    """
    features, cells = _seen(model, images, pooled=True, prefix=prefix)
    return F.normalize(features.float(), dim=-1), cells


def prefix_tokens(model: DualEncoder) -> int:
    """How many class and register tokens the image tower has."""
    visual: Any = model.clip.visual
    if isinstance(visual, VisionTransformer):
        return 1
    return int(getattr(visual.trunk, "num_prefix_tokens", 0)) if isinstance(visual, TimmModel) else 0


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


def _seen(model: DualEncoder, images: Tensor, *, pooled: bool, prefix: bool = False) -> tuple[Tensor, Tensor]:
    """(b, D) pooled and projected features, empty unless `pooled`, and (b, P, w) float32 tokens."""
    pixels = (images.float() - model.mean) / model.std
    features, cells = model.as_compiled(_tower)(model.clip.visual, pixels, pooled, prefix)
    if cells is None:
        raise _without_tokens(model)
    return features, cells.float()


def _tower(visual: Any, pixels: Tensor, pooled: bool, prefix: bool) -> tuple[Tensor, Tensor | None]:
    """`_seen` of normalised pixels, by open_clip's image tower; None for one that has no tokens."""
    features = pixels.new_empty(0)
    cells: Tensor | None = None
    if isinstance(visual, VisionTransformer):
        normed = visual.attn_pool is None and not visual.final_ln_after_pool
        found = visual.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=normed,
            intermediates_only=not pooled,
            output_fmt="NLC",
            output_extra_tokens=prefix,
        )
        cells = found["image_intermediates"][0]
        if prefix:
            cells = torch.cat([found["image_intermediates_prefix"][0], cells], dim=1)
        features = found.get("image_features", features)
    elif isinstance(visual, ModifiedResNet):
        found = visual.forward_intermediates(pixels, indices=1, intermediates_only=not pooled)
        cells = found["image_intermediates"][0].flatten(2).mT
        features = found.get("image_features", features)
    elif isinstance(visual, TimmModel):
        last = visual.trunk.forward_features(pixels)
        cells = _cells_of_timm(visual.trunk, last, prefix)
        if pooled and cells is not None:
            features = visual.head(visual.trunk.forward_head(last))
    return features, cells


def _without_tokens(model: DualEncoder) -> UserError:
    kind = _kind(model.clip.visual)
    return UserError(f"the image tower of model {model.name!r} ({kind}) gives no patch tokens; use its pooled features")


def _kind(visual: Any) -> str:
    return type(getattr(visual, "trunk", visual)).__name__


def _cells_of_timm(trunk: Any, found: Any, prefix: bool) -> Tensor | None:
    """What a timm model pools: tokens, class and register tokens first or left out, or a map, either way round."""
    if not isinstance(found, Tensor):
        return None
    if found.ndim == 3 and found.shape[2] == trunk.num_features:
        return found if prefix else found[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if found.ndim == 4 and found.shape[1] == trunk.num_features:
        return found.flatten(2).mT
    if found.ndim == 4 and found.shape[3] == trunk.num_features:
        return found.flatten(1, 2)
    return None


def project_image_tokens(model: DualEncoder, cells: Tensor) -> Tensor:
    """(b, P, w) tokens of `encode_image_with_tokens` -> (b, P, D) float32 unit rows, comparable with texts' features.

    By the image tower's own way from its last map to its features, as if a token were all it saw: layer norms that
    come after pooling, then the projection, if there is one. The attention pool of CLIP's ResNets gives its values and
    output maps (MaskCLIP, Zhou et al. 2022, arXiv 2112.01071). Raises UserError for towers that have no such way: those
    that pool by another kind of attention (SigLIP's), or project by a classifier of timm's.
    """
    visual: Any = model.clip.visual
    seen: Tensor | None = None
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        seen = visual.ln_post(cells) if visual.final_ln_after_pool else cells
        seen = seen if visual.proj is None else seen @ visual.proj
    elif isinstance(visual, ModifiedResNet):
        seen = visual.attnpool.c_proj(visual.attnpool.v_proj(cells))
    elif isinstance(visual, TimmModel):
        seen = _alone_in_timm(visual, cells)
    if seen is None or seen.shape[-1] != model.config["embed_dim"]:
        raise UserError(
            f"the image tower of model {model.name!r} ({_kind(visual)}) has no projection of single patches"
        )
    return F.normalize(seen.float(), dim=-1)


def _alone_in_timm(visual: Any, cells: Tensor) -> Tensor | None:
    """`project_image_tokens` of a timm tower, not normed; None if it does more than pick or average, and project."""
    trunk = visual.trunk
    head = getattr(trunk, "head", None)
    attends = isinstance(head, AttentionPool2d | RotAttentionPool2d) or getattr(trunk, "attn_pool", None) is not None
    more = trunk.num_classes > 0 or not isinstance(getattr(head, "pre_logits", None), nn.Identity | None)
    if attends or more or hasattr(visual.head, "pool"):
        return None
    norm = getattr(trunk, "fc_norm", None)  # of transformers whose patches are averaged
    norm = getattr(head, "norm", None) if norm is None else norm  # of convolutional towers, over channels
    if isinstance(norm, nn.LayerNorm):
        cells = F.layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    elif not isinstance(norm, nn.Identity | None):
        return None
    projected: Tensor = visual.head(cells)
    return projected


def text_tokens(model: DualEncoder, tokens: Tensor) -> Tensor:
    """(n, L) token ids -> (n, L, w) float32 unit rows of the words; rows of start, end and padding are zero.

    They are in the tower's width w, after its last layer norm, before projection: comparable with other texts' tokens
    only. In a causal tower a word knows those before it. `.any(dim=-1)` is the mask of the words; a caption may have
    none at all. L is that of the batch: other batches, and other ranks, may have another.
    Raises UserError for towers that have none.
    """
    return F.normalize(_heard(model, tokens)[1].float(), dim=-1) * words(model, tokens)[..., None]


def encode_text_with_tokens(model: DualEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(n, L) token ids -> (n, D) float32 unit rows as `model.encode_text`, and (n, L, w) float32 hidden states.

    The states are those of every position, padding too (`attended` tells), after the tower's last layer norm and not
    normalised. One forward pass of the tower gives both, with gradient. Raises UserError for towers that have none.
    """
    features, hidden = _heard(model, tokens)
    return F.normalize(features.float(), dim=-1), hidden.float()


def text_width(model: DualEncoder) -> int:
    """w of the text tower's hidden states. Raises UserError for towers that have none."""
    text: Any = model.clip.text
    if isinstance(text, TextTransformer):
        return int(text.width)
    if isinstance(text, HFTextEncoder):
        return int(text.transformer.config.hidden_size)
    raise _without_words(model)


def project_text_tokens(model: DualEncoder, hidden: Tensor) -> Tensor:
    """(n, L, w) states of `encode_text_with_tokens` -> (n, L, D) float32 unit rows, comparable with images' features.

    By the text tower's own projection, if it has one. Raises UserError for towers without tokens.
    """
    text: Any = model.clip.text
    if isinstance(text, TextTransformer):
        projection = text.text_projection
    elif isinstance(text, HFTextEncoder):
        projection = text.proj
    else:
        raise _without_words(model)
    if isinstance(projection, nn.Module):
        hidden = projection(hidden)
    elif projection is not None:
        hidden = hidden @ projection
    return F.normalize(hidden.float(), dim=-1)


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


def attended(model: DualEncoder, tokens: Tensor) -> Tensor:
    """(n, L) token ids -> (n, L) bool: start, words and end; not padding.

    Where the tokenizer pads with an id that is also a word's (CLIP's: "!") or the end's, padding is what comes after
    the first end.
    """
    if isinstance(model.clip.text, HFTextEncoder):
        read: Tensor = tokens != model.clip.text.config.pad_token_id  # as the tower itself
        return read
    tokenizer = getattr(model.tokenizer, "tokenizer", model.tokenizer)
    end, pad = getattr(tokenizer, "eot_token_id", None), getattr(tokenizer, "pad_token_id", None)
    if end is None and pad == getattr(tokenizer, "eos_token_id", None):
        end = pad
    if end is not None:
        is_end = tokens == end
        until: Tensor = is_end.cumsum(dim=1) - is_end.long() == 0
        return until
    return torch.ones_like(tokens, dtype=torch.bool) if pad is None else tokens != pad


def _heard(model: DualEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) pooled and projected features, and (n, L, w) hidden states, of (n, L) token ids.

    A causal mask is cut to the length as in `DualEncoder.encode_text`.
    """
    text: Any = model.clip.text
    length = tokens.shape[1]
    if not isinstance(text, TextTransformer | HFTextEncoder):
        raise _without_words(model)
    if model.pad_id is not None and length < text.attn_mask.shape[0]:
        mask = {"text.attn_mask": text.attn_mask[:length, :length]}
        cut: tuple[Tensor, Tensor] = torch.func.functional_call(_Reading(text), mask, (tokens,))
        return cut
    return model.as_compiled(_read)(text, tokens)


def _read(text: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`_heard` by open_clip's text tower as it stands."""
    if isinstance(text, HFTextEncoder):
        mask = (tokens != text.config.pad_token_id).long()
        found = text.transformer(input_ids=tokens, attention_mask=mask)
        return text.proj(text.pooler(found, mask)), found.last_hidden_state
    found = text.forward_intermediates(tokens, indices=1, normalize_intermediates=True, output_fmt="NLC")
    return found["text_features"], found["text_intermediates"][0]


class _Reading(nn.Module):
    """`_read` as a forward, for `functional_call`."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _read(self.text, tokens)


def _without_words(model: DualEncoder) -> UserError:
    kind = type(model.clip.text).__name__
    return UserError(f"the text tower of model {model.name!r} ({kind}) gives no word tokens; use its pooled features")
