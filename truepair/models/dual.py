"""The two towers: any open_clip model, fed uint8 pixels and captions as short as they are."""

import difflib
import json
import logging
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import open_clip
import safetensors.torch
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError, reason
from truepair.pairs.text import tokenize

CONFIGS = Path(__file__).parent / "configs"
DEFAULT = "truepair-tiny"  # what `--model` means when it is not given: fit for a CPU
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # open_clip's names in a model's folder
SCALE_BOUND = 100.0  # open_clip and CLIP's code clamp 1/τ here
UNUSABLE = (  # what open_clip raises on configurations and weights that are missing, broken or of another model
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    StopIteration,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)

P = ParamSpec("P")
R = TypeVar("R")

open_clip.add_model_config(CONFIGS)


class DualEncoder(nn.Module):
    """An open_clip model with the few things training and evaluation need of it.

    Attributes:
        clip: the open_clip `CustomTextCLIP` (or `CoCa`) itself; its state_dict is what is saved and exported.
        name: what it was made from. config: open_clip's model config (embed_dim, vision_cfg, text_cfg, …).
        image_size: S, pixels. squash: images to evaluate are resized to a square, not cut to one.
        context_length: tokens at most.
        pad_id: token that may be trimmed from the right, None for towers whose features depend on padding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, name: str, config: dict[str, Any], tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.clip: Any = clip
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        size = clip.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        if height != width:
            raise UserError(f"model {name!r} wants images of {width}x{height}; only square ones are made here")
        self.image_size = int(height)
        self.squash = clip.visual.preprocess_cfg.get("resize_mode") == "squash"
        self.context_length = int(clip.context_length)
        self.pad_id = _pad_id(clip.text)
        self._how: dict[str, Any] | None = None  # the towers are compiled
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        mean = getattr(clip.visual, "image_mean", None) or OPENAI_DATASET_MEAN
        std = getattr(clip.visual, "image_std", None) or OPENAI_DATASET_STD
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.mean.device

    @property
    def scale(self) -> Tensor:
        """1/τ, () with gradient."""
        scale: Tensor = self.clip.logit_scale
        return scale.exp().reshape(())

    @property
    def bias(self) -> Tensor | None:
        """Logit bias () with gradient, None for models without one."""
        return None if self.clip.logit_bias is None else self.clip.logit_bias.reshape(())

    def tokenize(self, texts: list[str]) -> Tensor:
        """(n, L) int64 token ids on the CPU, trimmed to the longest text where the text tower allows it."""
        return tokenize(self.tokenizer, texts, self.pad_id)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32 unit rows. Pixels are normalised here, on the device."""
        pixels = (images.float() - self.mean) / self.std
        return F.normalize(self.clip.encode_image(pixels).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) token ids -> (n, D) float32 unit rows; L is the context length, or less for towers with a `pad_id`.

        open_clip slices the text tower's positions for short input but not its causal mask; we slice both.
        """
        text = self.clip.text
        length = tokens.shape[1]
        if self.pad_id is not None and length < text.attn_mask.shape[0]:
            mask = {"attn_mask": text.attn_mask[:length, :length]}
            features = torch.func.functional_call(text, mask, (tokens,))
        else:
            features = self.clip.encode_text(tokens)
        return F.normalize(features.float(), dim=-1)

    def compile_towers(self, **how: Any) -> None:
        """torch.compile both towers in place, the text tower for any length. how: arguments of torch.compile."""
        self.clip.visual.compile(**how)
        self.clip.text.compile(dynamic=True, **how)
        self._how = how

    def as_compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, which calls parts of the image tower and not the whole, compiled if the towers are."""
        if self._how is None:
            return function
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, **self._how)
        return self._compiled[function]

    @torch.no_grad()
    def clamp_scale(self, least: float = 1.0, most: float = SCALE_BOUND) -> None:
        """Keep 1/τ in [least, most]; [1, 100] as CLIP's and open_clip's code do."""
        self.clip.logit_scale.clamp_(math.log(least), math.log(most))

    def preprocess_config(self) -> dict[str, Any]:
        """What open_clip needs to prepare images in the same way."""
        return {
            "size": self.image_size,
            "mode": "RGB",
            "mean": (self.mean.flatten() / 255).tolist(),
            "std": (self.std.flatten() / 255).tolist(),
            "interpolation": "bicubic",
            "resize_mode": "squash" if self.squash else "shortest",
        }


def _pad_id(text: nn.Module) -> int | None:
    """The id that pads at the right without touching the features: true of causal towers pooled at the end of text."""
    causal = isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is None
    if causal and text.pool_type in ("argmax", "eos", "first"):
        return int(text.pad_id)  # type: ignore[arg-type]
    return None


def create(
    name: str = DEFAULT,
    *,
    pretrained: str | None = None,
    init_scale: float | None = None,
    init_bias: float | None = None,
) -> DualEncoder:
    """Build the towers of an open_clip model name ("ViT-B-32"), "local-dir:DIR", or ours ("truepair-tiny").

    init_scale, init_bias: log(1/τ) and logit bias of a model without weights of its own; models that come with
    weights keep theirs, and gain the bias only if they have none.
    Raises UserError for a name or weights that do not exist or do not fit; a directory without weights is an error,
    and so is a text tower that does not know all that its tokenizer says.
    """
    scheme = name.startswith(("local-dir:", "hf-hub:"))
    if scheme and pretrained:
        raise UserError(f"{name!r} brings its own weights; leave out {pretrained!r}, or name an architecture")
    if not scheme and name not in open_clip.list_models():
        known = {model.lower(): model for model in open_clip.list_models()}
        near = [known[model] for model in difflib.get_close_matches(name.lower(), known, n=8)]
        hint = f"near it: {', '.join(near)}" if near else "see open_clip.list_models(), or use local-dir:DIR"
        raise UserError(f"no model of the name {name!r}; {hint}")
    initial: dict[str, float] = {}
    if init_bias is not None:
        initial["init_logit_bias"] = init_bias
    if init_scale is not None and not pretrained and not scheme:
        initial["init_logit_scale"] = init_scale
    try:
        config = _model_config(name)
        with _quiet():
            clip = open_clip.create_model(
                name, pretrained=pretrained, force_custom_text=True, require_pretrained=scheme, **initial
            )
            tokenizer = open_clip.get_tokenizer(name)
    except UNUSABLE as error:
        weights = f" with weights {pretrained!r}" if pretrained else ""
        raise UserError(f"model {name!r}{weights} cannot be loaded: {reason(error)}") from error
    if init_bias is not None and not clip.logit_bias.any():  # open_clip makes it 0 where the weights have none
        nn.init.constant_(clip.logit_bias, init_bias)
    rows, highest = _embedding_rows(clip.text), _highest_token(tokenizer)
    if rows is not None and highest >= rows:
        raise UserError(
            f"model {name!r} knows {rows} tokens, but its tokenizer gives ids up to {highest}; set text_cfg.vocab_size "
            f"to {highest + 1} or more, or name its own tokenizer there (hf_tokenizer_name)"
        )
    return DualEncoder(clip, name, config | {"custom_text": True} | initial, tokenizer)


def _embedding_rows(text: Any) -> int | None:
    """Rows of a text tower's token embedding; None for one of another kind."""
    if isinstance(text, TextTransformer):
        return len(text.token_embedding.weight)
    if isinstance(text, HFTextEncoder):
        return len(text.transformer.get_input_embeddings().weight)
    return None


def _highest_token(tokenizer: Any) -> int:
    """The highest id that an open_clip tokenizer gives texts; -1 if it does not tell.

    Of transformers' only the vocabulary counts and what frames a text: other added tokens (T5's) need no embedding.
    """
    inner: Any = getattr(tokenizer, "tokenizer", None)
    if hasattr(inner, "get_added_vocab"):
        ids: dict[str, int] = inner.get_vocab()
        added = inner.get_added_vocab()
        return max(int(tokenizer([""]).max()), *(id_ for token, id_ in ids.items() if token not in added))
    return int(getattr(tokenizer, "vocab_size", 0)) - 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warning that a model to be trained starts from random weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _model_config(name: str) -> dict[str, Any]:
    if name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / CONFIG
        config: dict[str, Any] = json.loads(path.read_text())["model_cfg"]
        return config
    return dict(open_clip.get_model_config(name))


def open_model(name: str) -> DualEncoder:
    """A model to use as it is: "open_clip:NAME[:TAG]", "local-dir:DIR", or a run's directory (its newest checkpoint).

    Raises UserError if there is none of that name.
    """
    if name.startswith("open_clip:"):
        architecture, _, tag = name.removeprefix("open_clip:").partition(":")
        return create(architecture, pretrained=tag or None).eval()
    if name.startswith(("local-dir:", "hf-hub:")):
        return create(name).eval()
    folder = Path(name)
    if not (folder / "run.toml").is_file():
        raise UserError(
            f"{name!r} is no run (no run.toml there), and no open_clip:NAME[:TAG], local-dir:DIR or other scheme"
        )
    return create(f"local-dir:{newest_checkpoint(folder)[0]}").eval()


def newest_checkpoint(run: Path) -> tuple[Path, int]:
    """The folder of a run's newest checkpoint, and its step. Raises UserError if there is none."""
    found = [file.parent for file in run.glob(f"checkpoints/step-*/{CONFIG}")]
    steps = {int(folder.name[5:]): folder for folder in found if re.fullmatch("[0-9]+", folder.name[5:])}
    if not steps:
        raise UserError(f"run {run} has no checkpoint yet")
    return steps[max(steps)], max(steps)


def save_local_dir(model: DualEncoder, folder: Path) -> None:
    """Write `folder` so that `open_clip.create_model_and_transforms("local-dir:FOLDER")` gives this very model.

    Two files, open_clip's own names: open_clip_config.json and open_clip_model.safetensors (and a tokenizer's files,
    where the model has one that is not open_clip's).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.clip.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    text = {"model_cfg": model.config, "preprocess_cfg": model.preprocess_config()}
    (folder / CONFIG).write_text(json.dumps(text, indent=2) + "\n")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets none but the owner read it
    if isinstance(model.tokenizer, open_clip.tokenizer.HFTokenizer):
        model.tokenizer.save_pretrained(str(folder))
