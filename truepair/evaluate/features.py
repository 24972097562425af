"""From image files and sentences to unit feature vectors, for evaluation: nothing random, nothing kept for backward."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.models.encoders import evaluating
from truepair.models.matcher import Matcher
from truepair.pairs.image import ImageError, decode_centre
from truepair.pairs.workers import items

Read = Callable[[int], bytes]
Progress = Callable[[int], None]  # called with the number of items just done
See = Callable[[list[int], Tensor], Tensor]  # numbers of b images, (b, 3, S, S) uint8 on the device -> (b, D) float32
Skipped = tuple[int, str]  # row, reason


class Encoder(Protocol):
    """What evaluation needs of a two-tower model (`truepair.models.DualEncoder` has it)."""

    name: str
    image_size: int
    squash: bool  # images are resized to a square rather than cut

    @property
    def scale(self) -> Tensor: ...  # (), inverse temperature of its logits

    @property
    def device(self) -> torch.device: ...

    def tokenize(self, texts: list[str]) -> Tensor: ...  # (n, L) int64

    def encode_image(self, images: Tensor) -> Tensor: ...  # (B, 3, S, S) uint8 -> (B, D) float32, unit rows

    def encode_text(self, tokens: Tensor) -> Tensor: ...  # (B, L) -> (B, D) float32, unit rows


def towers_of(model: Encoder | Matcher) -> Encoder:
    """The dual encoder itself."""
    return model.towers if isinstance(model, Matcher) else model


@dataclass(frozen=True)
class ImageFeatures:
    """Features of the images that could be decoded, in the order of their rows.

    features: (n', D) float32 unit rows, on the CPU.
    rows: (n',) int64, the rows they belong to, ascending.
    skipped: (row, reason) of every other row.
    """

    features: Tensor
    rows: npt.NDArray[np.int64]
    skipped: list[Skipped]


def reasons(skipped: Sequence[Skipped]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    return dict(Counter(reason for _, reason in skipped).most_common())


@dataclass(frozen=True)
class _Decoded:
    """A batch as a worker hands it over: pixels (B', S, S, 3) uint8 of the rows that could be decoded."""

    rows: list[int]
    pixels: Tensor
    skipped: list[Skipped]


class _Decoder:
    """Item b is the decoded batch b: whole batches cross the process border, as one uint8 tensor each."""

    def __init__(self, read: Read, n: int, size: int, squash: bool, batch_size: int) -> None:
        self.read, self.n, self.size, self.squash, self.batch_size = read, n, size, squash, batch_size

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, batch: int) -> _Decoded:
        rows: list[int] = []
        skipped: list[Skipped] = []
        start = batch * self.batch_size
        pixels = np.empty((min(self.batch_size, self.n - start), self.size, self.size, 3), np.uint8)
        for row in range(start, start + len(pixels)):
            try:
                pixels[len(rows)] = decode_centre(self.read(row), self.size, squash=self.squash)
            except ImageError as error:
                skipped.append((row, error.reason))
            except OSError:
                skipped.append((row, "missing or changed file"))
            else:
                rows.append(row)
        return _Decoded(rows, torch.from_numpy(pixels[: len(rows)]), skipped)


def _room(n: int, dim: int) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could never be used in training
        return torch.empty(n, dim)


def image_features(
    model: Encoder,
    read: Read,
    n: int,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
    see: See | None = None,
) -> ImageFeatures:
    """Encode images 0..n-1, whose file bytes `read` gives; resized and cut as open_clip validates.

    Images that cannot be read or decoded are left out and named in `skipped`. `workers` processes decode with one
    thread each; 0 decodes in this one. `see` stands for `model.encode_image`, for whoever wants more of the pixels; it
    is called in the order of the result's rows. Raises UserError if no image is left.
    """
    decoder = _Decoder(read, n, model.image_size, model.squash, batch_size)
    made = items(decoder, range(len(decoder)), workers=workers, pin=model.device.type == "cuda")
    features: Tensor | None = None
    rows: list[int] = []
    skipped: list[Skipped] = []
    with evaluating(model), torch.inference_mode(), closing(made) as batches:
        for batch in batches:
            skipped += batch.skipped
            if batch.rows:
                pixels = batch.pixels.to(model.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
                encoded = (model.encode_image(pixels) if see is None else see(batch.rows, pixels)).float().cpu()
                features = _room(n, encoded.shape[1]) if features is None else features
                features[len(rows) : len(rows) + len(encoded)] = encoded
                rows += batch.rows
            if progress is not None:
                progress(len(batch.rows) + len(batch.skipped))
    if features is None:
        named = ", ".join(f"{count} x {reason}" for reason, count in reasons(skipped).items())
        raise UserError(f"no image could be evaluated: {named or 'there are none'}; check the data's paths and files")
    return ImageFeatures(features[: len(rows)], np.array(rows, np.int64), skipped)


def text_features(
    model: Encoder, texts: Sequence[str], *, batch_size: int = 1024, progress: Progress | None = None
) -> Tensor:
    """Encode n texts, at least one: (n, D) float32 unit rows on the CPU, in the order given.

    Texts of similar length share a batch, so that trimmed token rows stay short.
    """
    order = np.argsort([len(text) for text in texts], kind="stable")
    features: Tensor | None = None
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            chosen = order[start : start + batch_size]
            encoded = model.encode_text(model.tokenize([texts[i] for i in chosen]).to(model.device)).float().cpu()
            features = _room(len(texts), encoded.shape[1]) if features is None else features
            features[torch.from_numpy(chosen)] = encoded
            if progress is not None:
                progress(len(chosen))
    if features is None:
        raise UserError("there is no text to encode; the data has no captions or class names")
    return features
