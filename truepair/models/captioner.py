"""The captioner that trains beside the two towers: it reads an image's tokens and concepts, and writes a caption."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.models.concepts import are_names
from truepair.models.dual import DualEncoder
from truepair.models.image_to_text import Decoding, decode, distinct
from truepair.models.tokens import said, token_width
from truepair.pairs.columns import StringLists
from truepair.pairs.text import tokenize

PAD, BOS, EOS, SEP, UNKNOWN = range(5)  # the decoder's own ids; after them come those of its vocabulary
SPECIAL = 5
MOST_CONCEPTS = 32  # an image's, at most: NLIP retrieves about ten (recalled)
CONCEPT_TOKENS = 4  # longer names are cut
PREFIX = MOST_CONCEPTS * (CONCEPT_TOKENS + 1)  # positions before a caption begins
SAMPLE = 100_000  # rows whose captions `used_tokens` reads at most
CHUNK = 8_192  # texts tokenised at once


def used_tokens(tokenizer: Any, captions: StringLists | Sequence[Sequence[str]], *, sample: int = SAMPLE) -> Tensor:
    """(V,) int64, ascending: the ids of an open_clip tokenizer that occur in the captions, without its special ones.

    Reads all captions of at most `sample` rows, evenly spaced over the table.
    """
    rows = np.unique(np.linspace(0, len(captions) - 1, min(sample, len(captions))).round().astype(np.int64)).tolist()
    found = torch.empty(0, dtype=torch.int64)
    for first in range(0, len(rows), CHUNK):
        texts = [text for row in rows[first : first + CHUNK] for text in captions[row]]
        if texts:
            found = _distinct(torch.cat([found, _ids(tokenizer, texts)]))
    return found


class ConceptCaptioner(nn.Module):
    """NLIP's concept-conditioned cross-modal decoder (Huang et al. 2023, arXiv 2212.07086; no released code).

    A GPT-2 of transformers, from random weights, without dropout. In every layer it attends to the image tower's
    tokens (layer norm and a linear map to its width, ours). The names of an image's concepts stand before the caption
    as text: [c_k, sep, …, c₁, sep, begin, caption, end], the best one next to the caption (ours).
    It has a vocabulary of its own, the part of the dual encoder's that a corpus uses; tokens outside are read as one
    and never written.

    Attributes:
        concepts: names; concept ids index this list.
        longest: tokens that are written for a caption at most, its end among them: what the dual encoder can read.
    """

    vocabulary: Tensor  # (V,) int64 ascending, ids of the dual encoder's tokenizer
    names: Tensor  # (C + 1, CONCEPT_TOKENS + 1) own ids of each name and SEP, PAD after it; the last row, id -1, is PAD

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: Tensor,
        concepts: Sequence[str],
        *,
        image_width: int,
        longest: int,
        layers: int,
        width: int,
        heads: int,
    ) -> None:
        """Raises UserError without transformers, or for a width that the heads cannot share."""
        super().__init__()
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            raise UserError("the captioner needs transformers: pip install 'truepair[hf]'") from None
        if width % heads:
            raise UserError(f"a captioner of width {width} cannot have {heads} heads; the width must be a multiple")
        self.tokenizer, self.concepts, self.longest = tokenizer, list(concepts), longest
        self.shape = {"layers": layers, "width": width, "heads": heads}
        self.register_buffer("vocabulary", vocabulary)
        self.register_buffer("names", self._names(), persistent=False)
        self.project = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))
        config = GPT2Config(
            vocab_size=SPECIAL + len(vocabulary),
            n_positions=PREFIX + 2 + longest,  # a tokenizer without a start leaves room for one word more
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            add_cross_attention=True,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own as one kernel
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
        self.decoder: Any = GPT2LMHeadModel(config)

    @classmethod
    def build(
        cls,
        model: DualEncoder,
        vocabulary: Tensor,
        concepts: Sequence[str],
        *,
        layers: int = 0,
        width: int = 0,
        heads: int = 0,
    ) -> Self:
        """A captioner with random weights for the towers of `model`.

        vocabulary: (V,) ids of the model's tokenizer (`used_tokens`); those of the concepts' names are added.
        layers, width, heads: 0 takes the text tower's; for text towers of transformers 6, 512 and 8.
        Raises UserError for towers without tokens and for shapes that cannot be.
        """
        text: dict[str, Any] = model.config["text_cfg"]
        usual = {"layers": 6, "width": 512, "heads": 8}
        if "hf_model_name" not in text:
            usual = {"layers": 12, "width": 512, "heads": 8} | {name: text[name] for name in usual if name in text}
        return cls(
            model.tokenizer,
            _distinct(torch.cat([vocabulary.cpu().to(torch.int64), _ids(model.tokenizer, list(concepts))])),
            concepts,
            image_width=token_width(model),
            longest=model.context_length - 1,
            layers=layers or usual["layers"],
            width=width or usual["width"],
            heads=heads or usual["heads"],
        )

    @classmethod
    def from_state(cls, model: DualEncoder, state: dict[str, Any]) -> Self:
        """The captioner whose `state_dict` this is, for towers as those of its training.

        Raises UserError for what cannot be one of theirs, RuntimeError as `load_state_dict` and `build` as `build`.
        """
        shape, vocabulary = _shape(state), state.get("vocabulary")
        extra: Any = state.get("_extra_state")
        if shape is None or extra["longest"] != model.context_length - 1 or not are_names(extra.get("concepts")):
            raise UserError("the captioner's shape, length or concepts are none that these towers can have")
        if not isinstance(vocabulary, Tensor) or not _are_ids(vocabulary, model.tokenizer):
            raise UserError("the captioner's vocabulary is no list of ids of the towers' tokenizer, ascending")
        captioner = cls(
            model.tokenizer,
            vocabulary.cpu().clone(),
            extra["concepts"],
            image_width=token_width(model),
            longest=extra["longest"],
            **shape,
        )
        captioner.load_state_dict(state)
        return captioner

    def get_extra_state(self) -> dict[str, Any]:
        """What `from_state` needs beside tensors: plain numbers and strings."""
        return {"concepts": self.concepts, "longest": self.longest, "shape": self.shape}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state is that of another captioner."""
        if state != self.get_extra_state():
            raise UserError("the checkpoint's captioner has another shape, or other concepts, than this one")

    def forward(self, image_tokens: Tensor, captions: Tensor, concepts: Tensor) -> Tensor:
        """The negative log-likelihood per token of each caption, its end among them: (b·K,) float32, nats.

        image_tokens: (b, P, w) of `encode_image_with_tokens`. captions: (b·K, L) ids of the dual encoder's tokenizer,
        the K of an image together. concepts: (b, k) int64, -1: none; k may be 0.
        A caption that the tokenizer cut ends where it is cut. Raises UserError for more than MOST_CONCEPTS concepts.
        """
        fast = "eager" if image_tokens.device.type == "cpu" else "sdpa"  # torch's fused attention is slower on a CPU
        if self.decoder.config._attn_implementation != fast:
            self.decoder.set_attn_implementation(fast)
        each = len(captions) // len(image_tokens)
        words, is_word = self._own(captions)
        words = _gathered(words, is_word, left=True)
        prefix = self._prefix(concepts).repeat_interleave(each, dim=0)
        inputs = torch.cat([prefix, words], dim=1)
        targets = F.pad(words, (0, 1), value=PAD)
        targets.scatter_(1, is_word.sum(dim=1, keepdim=True), EOS)
        counted = (targets != PAD) & (targets != UNKNOWN)
        rows, places = counted.nonzero(as_tuple=True)  # before the decoder: a GPU is waited for while little is queued
        hidden = self.decoder.transformer(
            input_ids=inputs,
            attention_mask=(inputs != PAD).long(),
            position_ids=_positions(inputs, prefix.shape[1]),
            encoder_hidden_states=self.project(image_tokens).repeat_interleave(each, dim=0),
            use_cache=False,
        ).last_hidden_state[:, prefix.shape[1] - 1 :]
        logits = self.decoder.lm_head(hidden[rows, places])  # of all places: 1.4 to 4 times the time on a CPU
        nll = F.cross_entropy(logits.float(), targets[rows, places], reduction="none")
        return torch.zeros_like(counted, dtype=nll.dtype).index_put((rows, places), nll).sum(dim=1) / counted.sum(dim=1)

    @torch.no_grad()
    def generate(
        self, image_tokens: Tensor, concepts: Tensor, rows: npt.NDArray[np.int64], decoding: Decoding, seed: int
    ) -> list[list[str]]:
        """Up to `decoding.n` clean, distinct captions of each of b images, of at most `longest` tokens.

        A sampled caption is a function of the image, its concepts, `seed` and the row's number (up to rounding, which
        depends on the other images of the batch). Raises UserError as `decode`, and for too many concepts.
        """
        limits = {
            "min_new_tokens": min(decoding.min_tokens, self.longest),
            "max_new_tokens": min(decoding.max_tokens, self.longest),
            "suppress_tokens": [PAD, BOS, SEP, UNKNOWN],
        }
        training = self.training
        self.eval()
        try:
            given = self.given(image_tokens, concepts)
            tokens = decode(self.decoder, given, rows, decoding, seed, **limits)
        finally:
            self.train(training)
        return distinct(self._texts(tokens[:, given["input_ids"].shape[1] :]), decoding.n)

    def given(self, image_tokens: Tensor, concepts: Tensor) -> dict[str, Tensor]:
        """What `decoder.generate` goes on from, for (b, P, w) image tokens and (b, k) concept ids."""
        prefix = self._prefix(concepts)
        return {
            "input_ids": prefix,
            "attention_mask": (prefix != PAD).long(),
            "position_ids": _positions(prefix, prefix.shape[1]),
            "encoder_hidden_states": self.project(image_tokens),
        }

    def _prefix(self, concepts: Tensor) -> Tensor:
        """(b, k) concept ids, -1: none -> (b, p) own ids: PAD, the names, the first one last, BOS."""
        if concepts.shape[1] > MOST_CONCEPTS:
            raise UserError(f"{concepts.shape[1]} concepts an image are too many; ask for at most {MOST_CONCEPTS}")
        names = self.names[concepts.flip(1)].flatten(1)
        begin = names.new_full((len(names), 1), BOS)
        return torch.cat([_gathered(names, names != PAD, left=False), begin], dim=1)

    def _own(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L) ids of the dual encoder's tokenizer -> own ids, and where words are, both (n, L)."""
        if not len(self.vocabulary):
            return torch.full_like(tokens, UNKNOWN), said(self.tokenizer, tokens)
        place = torch.searchsorted(self.vocabulary, tokens.contiguous()).clamp(max=len(self.vocabulary) - 1)
        own = torch.where(self.vocabulary[place] == tokens, place + SPECIAL, UNKNOWN)
        return own, said(self.tokenizer, tokens)

    def _names(self) -> Tensor:
        names = torch.full((len(self.concepts) + 1, CONCEPT_TOKENS + 1), PAD)
        if self.concepts:
            own, is_word = self._own(tokenize(self.tokenizer, self.concepts, None))
            cut = _gathered(own, is_word, left=True)[:, :CONCEPT_TOKENS]
            names[:-1, : cut.shape[1]] = cut
            names[:-1].scatter_(1, is_word.sum(dim=1, keepdim=True).clamp(max=CONCEPT_TOKENS), SEP)
        return names

    def _texts(self, tokens: Tensor) -> list[str]:
        """(n, L) own ids -> n texts of one line."""
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        lists = [[token for token in row if token >= SPECIAL] for row in tokens.tolist()]
        vocabulary = self.vocabulary.tolist()
        texts = [tokenizer.decode([vocabulary[token - SPECIAL] for token in row]) for row in lists]
        return [" ".join(text.split()) for text in texts]


def _shape(state: dict[str, Any]) -> dict[str, int] | None:
    """Layers, width and heads that a `state_dict` names, if its tensors have them; so none is larger than its file."""
    extra: Any = state.get("_extra_state")
    places = state.get("decoder.transformer.wpe.weight")
    shape, longest = (extra.get("shape"), extra.get("longest")) if isinstance(extra, dict) else (None, None)
    if not isinstance(shape, dict) or not isinstance(longest, int) or not isinstance(places, Tensor):
        return None
    heads, layers = shape.get("heads"), sum(name.endswith(".crossattention.c_attn.weight") for name in state)
    if not isinstance(heads, int) or heads < 1 or places.ndim != 2 or len(places) != PREFIX + 2 + longest:
        return None
    found = {"layers": layers, "width": places.shape[1], "heads": heads}
    return found if shape == found else None


def _are_ids(vocabulary: Tensor, tokenizer: Any) -> bool:
    """Whether this is (V,) int64, ascending, of ids that a tokenizer knows."""
    if vocabulary.dtype != torch.int64 or vocabulary.ndim != 1:
        return False
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    known = len(tokenizer) if hasattr(tokenizer, "__len__") else tokenizer.vocab_size
    within = not len(vocabulary) or (vocabulary[0] >= 0 and vocabulary[-1] < known)
    return bool(within and (vocabulary.diff() > 0).all())


def _ids(tokenizer: Any, texts: list[str]) -> Tensor:
    """(m,) distinct ids of the words of texts, ascending."""
    if not texts:
        return torch.empty(0, dtype=torch.int64)
    tokens = tokenize(tokenizer, texts, None)
    return _distinct(tokens[said(tokenizer, tokens)])


def _distinct(ids: Tensor) -> Tensor:
    return torch.from_numpy(np.unique(ids.numpy()))


def _gathered(ids: Tensor, kept: Tensor, *, left: bool) -> Tensor:
    """(n, L) ids -> (n, l): in each row those `kept`, in their order, at the left or the right; PAD beside them."""
    order = (~kept if left else kept).int().argsort(dim=1, stable=True)
    packed = ids.masked_fill(~kept, PAD).gather(1, order)
    longest = int(kept.sum(dim=1).max()) if kept.numel() else 0
    return packed[:, :longest] if left else packed[:, packed.shape[1] - longest :]


def _positions(ids: Tensor, prefix: int) -> Tensor:
    """(n, l) positions of ids whose first `prefix` end with BOS: captions begin at PREFIX whatever stands before."""
    return torch.arange(PREFIX + 1 - prefix, PREFIX + 1 - prefix + ids.shape[1], device=ids.device).expand_as(ids)
