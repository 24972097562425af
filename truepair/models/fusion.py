"""The fusion encoder: text attends to an image, and says whether the two match and which words are missing."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from truepair.errors import UserError
from truepair.models.dual import DualEncoder
from truepair.models.masked_text import word_embedding
from truepair.models.tokens import text_width, token_width

WIDER = 4  # hidden units of a layer against its width; BERT's
MOST_LAYERS, MOST = 256, 2**24  # layers, and any other number, of a saved one: it is laid out before it is compared


@dataclass(frozen=True)
class Shape:
    """All that a fusion encoder is built from. vocabulary: V of the MLM head. itm, mlm: which heads it has."""

    layers: int
    heads: int
    width: int
    feedforward: int
    image_width: int
    vocabulary: int
    itm: bool
    mlm: bool


class Fusion(nn.Module):
    """ALBEF's multimodal encoder (Li et al. 2021, arXiv 2107.07651, section 3.1), as NEVER's code has it: layers in
    which every token of a text attends to the others, then to the image; heads for ITM and MLM.

    torch's own decoder layers without causal mask, pre-norm (BERT's are post-norm; ours, for training from scratch),
    and a last layer norm; a layer norm of the image's tokens, which not every tower has (ours). Both inputs carry their
    positions already. Weights are torch's random ones.
    """

    def __init__(self, shape: Shape) -> None:
        """Raises UserError for a width that the heads cannot share."""
        super().__init__()
        width = shape.width
        if width % shape.heads:
            raise UserError(
                f"a fusion encoder of width {width} cannot have {shape.heads} heads; the width must be a multiple"
            )
        self.shape = shape
        same = shape.image_width == width
        self.project = nn.Sequential(
            nn.LayerNorm(shape.image_width), nn.Identity() if same else nn.Linear(shape.image_width, width)
        )
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, shape.heads, shape.feedforward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.itm = nn.Linear(width, 2) if shape.itm else None
        self.mlm = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) if shape.mlm else None
        self.mlm_bias = nn.Parameter(torch.zeros(shape.vocabulary)) if shape.mlm else None

    @classmethod
    def build(
        cls, model: DualEncoder, *, layers: int = 0, heads: int = 0, itm: bool = True, mlm: bool = True
    ) -> "Fusion":
        """A fusion encoder with random weights for the towers of `model`, in the width of its text tower.

        layers, heads: 0 takes as many as the text tower has (NEVER's: 6 and 12). itm, mlm: the heads to build; reserve
        the mask token before, the MLM head counts the embedding's rows.
        Raises UserError for towers without tokens, and for shapes that cannot be.
        """
        if not 0 <= layers <= MOST_LAYERS or heads < 0:
            raise UserError(
                f"a fusion encoder of {layers} layers and {heads} heads cannot be; 0 takes the text tower's, at most "
                f"{MOST_LAYERS} layers"
            )
        width, usual = text_width(model), _usual(model)
        return cls(
            Shape(
                layers=layers or usual["layers"],
                heads=heads or usual["heads"],
                width=width,
                feedforward=WIDER * width,
                image_width=token_width(model),
                vocabulary=len(word_embedding(model)) if mlm else 0,
                itm=itm,
                mlm=mlm,
            )
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The fusion encoder whose `state_dict` this is, on the CPU, in float32. Draws no random numbers.

        Raises UserError for what cannot be one. Tensors are compared with the shape before memory is taken for it, so
        none is larger than its file.
        """
        shape = _shape(state.get("_extra_state"))
        if shape is None:
            raise UserError("the fusion encoder's state does not say its shape, or says one that cannot be")
        with torch.device("meta"):
            fusion = cls(shape)
        wanted: dict[str, Any] = {name: x.shape for name, x in fusion.named_parameters()}
        found: dict[str, Any] = {name: x for name, x in state.items() if name != "_extra_state"}
        for name in sorted(wanted.keys() | found.keys()):
            x: Any = found.get(name)
            if not _is_plain(x) or x.shape != wanted.get(name):
                raise UserError(f"the fusion encoder's {name} is none of the shape that its state says")
        fusion = fusion.to_empty(device="cpu")
        fusion.load_state_dict(state)
        return fusion

    def get_extra_state(self) -> dict[str, int | bool]:
        """The shape as plain numbers, for state_dict."""
        return asdict(self.shape)

    def set_extra_state(self, state: Any) -> None:
        """Raises UserError if the state is that of a fusion encoder of another shape."""
        if state != self.get_extra_state():
            raise UserError(f"the checkpoint's fusion encoder has another shape than this one: {state}, {self.shape}")

    def forward(self, text: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        """(n, L, w) hidden states of texts, (n, L) bool `attended`, (n, P, v) image tokens -> (n, L, w) fused states.

        What stands in positions that are not attended changes no other; the first one always counts as attended.
        """
        padding = ~attended
        padding[:, 0] = False  # a row without any key is NaN in some kernels
        image = self.project(image)
        with (
            sdpa_kernel(SDPBackend.MATH) if text.device.type == "cpu" else nullcontext()
        ):  # flash is slow for few tokens
            for layer in self.layers:
                text = layer(text, image, tgt_key_padding_mask=padding)
        fused: Tensor = self.norm(text)
        return fused

    def match(self, fused: Tensor) -> Tensor:
        """(n, L, w) fused states -> (n, 2) float32 logits of [mismatch, match], from the start token as from BERT's
        [CLS]. In float32 also under autocast: NEVER ranks pairs by them. Raises ValueError without the ITM head."""
        if self.itm is None:
            raise ValueError("this fusion encoder was built without ITM")
        with torch.autocast(fused.device.type, enabled=False):
            logits: Tensor = self.itm(fused[:, 0].float())
        return logits

    def fill(self, hidden: Tensor, embedding: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """(m, w) fused states at gaps, (V, w) `word_embedding` -> (m, V) float32 logits of the missing words.

        BERT's head: dense, gelu, layer norm, then the embedding itself and a bias. vocabulary: (U,) int64 ids, the only
        ones that logits (m, U) are wanted of. Raises ValueError without the MLM head.
        """
        if self.mlm is None or self.mlm_bias is None:
            raise ValueError("this fusion encoder was built without MLM")
        bias: Tensor = self.mlm_bias
        if vocabulary is not None:
            embedding, bias = (x.index_select(0, vocabulary) for x in (embedding, bias))
        return F.linear(self.mlm(hidden), embedding, bias).float()


def _usual(model: DualEncoder) -> dict[str, int]:
    """Layers and heads of the text tower."""
    text: Any = model.clip.text
    if isinstance(text, TextTransformer):
        blocks: Any = text.transformer.resblocks
        return {"layers": len(blocks), "heads": text.heads}
    config: Any = text.transformer.config
    return {"layers": config.num_hidden_layers, "heads": config.num_attention_heads}


def _shape(extra: Any) -> Shape | None:
    """The shape that a stranger's state names, None for one that cannot be."""
    if not isinstance(extra, dict) or extra.keys() != {field.name for field in fields(Shape)}:
        return None
    numbers = {name: extra[name] for name in ("layers", "heads", "width", "feedforward", "image_width", "vocabulary")}
    if not all(type(x) is int and 0 <= x <= MOST for x in numbers.values()):
        return None
    if not isinstance(extra["itm"], bool) or not isinstance(extra["mlm"], bool):
        return None
    if not 0 < numbers["layers"] <= MOST_LAYERS or 0 in (numbers["heads"], numbers["width"]):
        return None
    return Shape(**extra)


def _is_plain(x: Any) -> bool:
    """Whether it holds a float for each of its places: one value may stand for a whole tensor in a small file."""
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
    return dense and x.is_floating_point() and x.is_contiguous()
