"""How alike an image and texts are, by two towers: what decides which of an image's captions to keep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from truepair.models.dual import DualEncoder
from truepair.models.encoders import evaluating
from truepair.pairs.image import centre

TEXTS = 1024  # encoded at once
PIXELS = "pixels"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Pixels:
    """Images to what a dual encoder sees, in any process: as `pairs.image.decode_centre` prepares for evaluation."""

    size: int
    squash: bool

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """B RGB images -> {"pixels": (B, 3, S, S) uint8}."""
        pixels = np.stack([centre(image, self.size, self.squash) for image in images])
        return {PIXELS: torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()}


class Judge:
    """Cosines of images and texts by a dual encoder. Attributes: `model`, `precision` in use, `preparer`."""

    def __init__(self, model: DualEncoder, precision: Precision = "auto") -> None:
        self.model, self.precision = model, precision_of(precision, model.device)
        self.preparer = Pixels(model.image_size, model.squash)

    def see(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32 unit rows, on the model's device."""
        with at_rest(self.model, self.model.device, self.precision):
            return self.model.encode_image(pixels.to(self.model.device, non_blocking=True)).float()

    def cosines(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Of each of B image features (B, D) with each of its own texts; equal texts are encoded once."""
        flat = [text for own in texts for text in own]
        distinct = sorted(set(flat), key=lambda text: (len(text), text))  # of similar length together: short batches
        if not distinct:
            return [[] for _ in texts]
        with at_rest(self.model, self.model.device, self.precision):
            features = torch.cat([self._read(distinct[i : i + TEXTS]) for i in range(0, len(distinct), TEXTS)])
        number = {text: i for i, text in enumerate(distinct)}
        counts = [len(own) for own in texts]
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(images.device)
        chosen = torch.tensor([number[text] for text in flat], device=images.device)
        cosines = iter(torch.linalg.vecdot(images[owner], features[chosen]).tolist())
        return [[next(cosines) for _ in range(count)] for count in counts]

    def _read(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.model.tokenize(texts).to(self.model.device)).float()


def precision_of(wanted: Precision, device: torch.device) -> str:
    """ "auto": bf16 or fp16 on a GPU, fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def at_rest(module: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """`module` in evaluation state, without gradients, in `precision`; then all is as it was, torch's randomness too.

    Weights stay in the type they have (autocast), for they may be those of a run that trains on.
    """
    wide = torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")
    with evaluating(module), torch.no_grad(), wide, torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
