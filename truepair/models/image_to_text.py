"""External captioners: any image-to-text model of transformers, with sampling that is a function of the row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from truepair.errors import UserError, reason
from truepair.models.dual import UNUSABLE
from truepair.pairs import draws

SCHEME = "hf:"
ASK = "Describe this image in one short sentence."  # what models that chat are asked without a prompt (ours)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Decoding:
    """How captions are chosen. Nucleus with 0.9 is how BLIP wrote captions to train on (Li et al. 2022, sec. 4.3);
    five beams and 30 tokens are BLIP-2's own choice for captions to be read (its code)."""

    method: Literal["nucleus", "beam", "greedy"] = "nucleus"
    n: int = 1  # captions an image; equal ones are kept once
    top_p: float = 0.9  # nucleus: the likeliest tokens that together have this probability
    temperature: float = 1.0  # nucleus: of the logits
    beams: int = 5  # beam: how many
    min_tokens: int = 5
    max_tokens: int = 30

    def __post_init__(self) -> None:
        """Raises UserError for what cannot be."""
        limits = {
            "n": self.n >= 1,
            "top-p": 0 < self.top_p <= 1,
            "temperature": 0 < self.temperature < float("inf"),
            "beams": self.beams >= 1,
            "max-tokens": self.max_tokens >= 1,
            "min-tokens": 0 <= self.min_tokens <= self.max_tokens,
        }
        for name, fine in limits.items():
            if not fine:
                raise UserError(f"--{name} {getattr(self, name.replace('-', '_'))} makes no sense for captions")
        most = {"nucleus": self.n, "beam": self.beams, "greedy": 1}[self.method]
        if self.n > most:
            raise UserError(f"--decoding {self.method} gives at most {most} captions an image, --n asks for {self.n}")


class Preparer:
    """Images to a model's inputs, in any process: the part of a captioner that worker processes hold."""

    def __init__(self, processor: Any, text: str) -> None:
        self.processor, self.text = processor, text

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """B images -> the tensors that `Captioner.generate` wants, each with B rows or what the model packs them in."""
        more: dict[str, Any] = {"text": [self.text] * len(images), "padding": True} if self.text else {}
        made: dict[str, Tensor] = dict(self.processor(images=list(images), return_tensors="pt", **more))
        return made


class Captioner:
    """A model that writes captions. Attributes: `name`, `precision` in use, `prompt` in use, `version` of transformers.

    Made by `open_captioner`.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, preparer: Preparer, precision: str, prompt: str) -> None:
        import transformers

        self.name, self.precision, self.prompt, self.version = name, precision, prompt, transformers.__version__
        self.preparer = preparer
        self.model, self._tokenizer = model, tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def generate(
        self, inputs: dict[str, Tensor], rows: npt.NDArray[np.int64], decoding: Decoding, seed: int
    ) -> list[list[str]]:
        """Up to `decoding.n` clean, distinct captions of each of B images, prepared by `preparer`.

        A sampled caption is a function of the image, `seed` and the row's number (up to rounding, which depends on the
        other images of the batch). Raises UserError if the model refuses, runs out of memory, or its logits are no
        numbers.
        """
        here = {name: self._moved(tensor) for name, tensor in inputs.items()}
        try:
            tokens = decode(self.model, here, rows, decoding, seed)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"captioner {self.name!r} cannot go on from images (and --prompt): {reason(error)}"
            ) from error
        asked = here.get("input_ids")
        if asked is not None and _begin_with(tokens, asked.repeat_interleave(decoding.n, dim=0)):
            tokens = tokens[:, asked.shape[1] :]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return distinct([_clean(text, self.preparer.text) for text in texts], decoding.n)

    def _moved(self, tensor: Tensor) -> Tensor:
        dtype = DTYPES[self.precision] if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype, non_blocking=True)


def decode(
    model: Any, inputs: dict[str, Tensor], rows: npt.NDArray[np.int64], decoding: Decoding, seed: int, **more: Any
) -> Tensor:
    """(B·n, L) tokens that a model of transformers writes for the inputs of B images, the n of an image together.

    more: options of its `generate` that take precedence over those of `decoding`.
    Raises UserError if the device's memory is too small, or if sampled logits are no numbers.
    """
    how: dict[str, Any] = {"num_beams": decoding.beams if decoding.method == "beam" else 1, "do_sample": False}
    if decoding.method == "nucleus":
        # The sampler leaves one token a step, so that transformers' own draw, which depends on the batch, has none.
        sampler = RowSampler(rows, decoding, seed)
        how |= {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "logits_processor": [sampler]}
    how |= {"min_new_tokens": decoding.min_tokens, "max_new_tokens": decoding.max_tokens}
    try:
        with torch.inference_mode(), _quiet():
            tokens: Tensor = model.generate(**inputs, **(how | more), num_return_sequences=decoding.n)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{len(rows)} images at once are too many for the device's memory; lower --batch-size"
        ) from None
    return tokens


def distinct(texts: Sequence[str], n: int) -> list[list[str]]:
    """B·n texts, the n of an image together -> B lists without empty and repeated ones."""
    lists = [texts[i : i + n] for i in range(0, len(texts), n)]
    return [list(dict.fromkeys(filter(None, texts))) for texts in lists]


class RowSampler:
    """Nucleus sampling (Holtzman et al. 2020) whose random numbers belong to rows, as a logits processor.

    One uniform number for each row, caption and step picks the token by the inverse of the cumulative probability of
    the nucleus; every other logit becomes -inf.
    """

    def __init__(self, rows: npt.NDArray[np.int64], decoding: Decoding, seed: int) -> None:
        self.rows, self.decoding, self.seed = rows, decoding, seed
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B·n, V), the n of an image together -> the same shape with one finite logit a row."""
        uniform = draws.uniform(self.rows, self.decoding.n, self.seed, draws.GENERATE, self.step).reshape(-1, 1)
        self.step += 1
        p, token = (scores.float() / self.decoding.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        before = p.cumsum(dim=-1) - p  # probability of the likelier tokens
        p = p.masked_fill(before >= self.decoding.top_p, 0)
        reached = p.cumsum(dim=-1)
        if bool(reached[:, -1].isnan().any()):
            raise UserError("the captioner's logits are no numbers in this precision; use --precision fp32")
        wanted = torch.from_numpy(uniform).to(reached) * reached[:, -1:]
        last = (p > 0).sum(dim=-1, keepdim=True) - 1
        chosen = token.gather(1, torch.minimum((reached <= wanted).sum(dim=-1, keepdim=True), last))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def open_captioner(
    name: str, *, device: torch.device | str = "cpu", precision: Precision = "auto", prompt: str = ""
) -> Captioner:
    """The captioner of a name "hf:NAME_OR_DIR": a model of the Hugging Face hub, or a folder of `save_pretrained`.

    Any image-to-text architecture of transformers: BLIP, BLIP-2, GIT, vision encoder-decoders, models that chat about
    images. Weights must be safetensors, and no code that comes with a model is run. `precision` "auto" is bf16 or fp16
    on a GPU, fp32 on a CPU. `prompt`: what captions go on from, or the question to models that chat.
    Raises UserError if transformers or the model is missing, or does not fit.
    """
    if not name.startswith(SCHEME):
        raise UserError(f"captioner {name!r}: use hf:NAME or hf:DIR, an image-to-text model of transformers")
    try:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    except ImportError:
        raise UserError("captioners need transformers: pip install 'truepair[hf]'") from None
    where, device = name.removeprefix(SCHEME), torch.device(device)
    if where.startswith((".", "/", "~")) and not Path(where).expanduser().is_dir():
        raise UserError(f"captioner {name!r}: there is no folder {where}")
    chosen = _precision(precision, device)
    path = str(Path(where).expanduser()) if Path(where).expanduser().is_dir() else where
    try:
        with _quiet():
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=DTYPES[chosen], use_safetensors=True, trust_remote_code=False
            )
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            whole = hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
            if not whole:  # encoder-decoders made of two models have no processor of their own, only its halves
                processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
            tokenizer = processor.tokenizer if whole else AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except UNUSABLE as error:
        here = "" if Path(path).is_dir() else f" (there is no folder {where}, so the hub was asked)"
        raise UserError(f"captioner {name!r} cannot be loaded{here}: {reason(error)}") from error
    tokenizer.padding_side = "left"
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    if getattr(processor, "chat_template", None):
        prompt = prompt or ASK
    elif prompt and not whole:
        raise UserError(f"captioner {name!r} reads no text; leave out --prompt")
    preparer = Preparer(processor, _text(processor, prompt))
    return Captioner(name, model.to(device).eval(), tokenizer, preparer, chosen, prompt)


def _text(processor: Any, prompt: str) -> str:
    """What the model reads beside an image: the prompt, as a question where it chats."""
    if not getattr(processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _precision(wanted: Precision, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp16" if device.type == "mps" else "fp32"


def _begin_with(tokens: Tensor, asked: Tensor) -> bool:
    return tokens.shape[1] >= asked.shape[1] and bool((tokens[:, : asked.shape[1]] == asked).all())


def _clean(text: str, prompt: str) -> str:
    """One line without the prompt, which some models repeat (in lower case, if their tokens are)."""
    text, prompt = " ".join(text.split()), " ".join(prompt.split())
    if prompt and text.lower().startswith(prompt.lower()):
        text = text[len(prompt) :].strip()
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings about defaults that are set here, and its bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
