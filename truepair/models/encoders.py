"""Frozen encoders for features, by name: two towers, a timm backbone for images, a sentence encoder for texts."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError, reason
from truepair.models.dual import UNUSABLE, open_model
from truepair.models.sentence import open_sentence_encoder


@runtime_checkable
class ImageEncoder(Protocol):
    """Gives features of images. `truepair.models.DualEncoder` is one."""

    name: str
    image_size: int  # S, pixels
    squash: bool  # images are resized to a square rather than cut

    @property
    def device(self) -> torch.device: ...

    def encode_image(self, images: Tensor) -> Tensor: ...  # (B, 3, S, S) uint8 -> (B, D) float32, unit rows

    def to(self, device: torch.device) -> Self: ...


@runtime_checkable
class TextEncoder(Protocol):
    """Gives features of texts. `truepair.models.DualEncoder` is one."""

    name: str

    @property
    def device(self) -> torch.device: ...

    def tokenize(self, texts: list[str]) -> Tensor: ...  # (n, L) int64

    def encode_text(self, tokens: Tensor) -> Tensor: ...  # (n, L) -> (n, D) float32, unit rows

    def to(self, device: torch.device) -> Self: ...


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """`model` in its evaluation state, if it is a module; each of its parts gets back the state it had."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    trained = [part for part in parts if part.training]
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True


class TimmEncoder(nn.Module):
    """A timm model without its classifier: features as timm pools them, of images prepared by its own data config.

    It is fed what timm resizes images to (S = size / crop_pct) and cuts the centre itself. Images are resized
    bicubically, also for the one model in ten whose config says bilinear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, name: str, data: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = name
        _, height, width = data["input_size"]
        if height != width:
            raise UserError(f"model {name!r} wants images of {width}x{height}; only square ones are made here")
        self.cut = int(height)
        self.image_size = int(height / data["crop_pct"])
        self.squash = data.get("crop_mode") == "squash"
        self.register_buffer("mean", 255 * torch.tensor(data["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(data["std"]).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.mean.device

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32 unit rows."""
        margin = round((self.image_size - self.cut) / 2.0)
        cut = images[..., margin : margin + self.cut, margin : margin + self.cut]
        features: Tensor = self.backbone((cut.float() - self.mean) / self.std)
        return F.normalize(features.float().flatten(1), dim=-1)


def open_timm(name: str) -> TimmEncoder:
    """The encoder of "NAME" (weights from the hub), "NAME:FILE" (a checkpoint), or "FOLDER" (config.json and weights).

    Checkpoints are loaded as tensors only. Raises UserError for what is not there or does not fit.
    """
    import timm

    architecture, _, file = name.partition(":")
    try:
        if Path(name).is_dir():
            backbone = timm.create_model(f"local-dir:{name}", pretrained=True, num_classes=0)
        else:
            backbone = timm.create_model(architecture, pretrained=not file, num_classes=0)
            if file:
                _load(backbone, Path(file))
        data = timm.data.resolve_data_config({}, model=backbone)
    except UNUSABLE as error:
        raise UserError(f"timm model {name!r} cannot be loaded: {reason(error)}") from error
    return TimmEncoder(backbone, f"timm:{name}", data).eval()


def _load(backbone: nn.Module, file: Path) -> None:
    """Load a checkpoint in full; of its tensors only a classifier's may be left over."""
    from timm.models import load_state_dict

    try:
        tensors = load_state_dict(str(file), weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {file}; name a .safetensors or .pth file") from None
    except (pickle.UnpicklingError, EOFError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is no checkpoint of tensors: {reason(error)}") from error
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    named = config.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    heads = tuple(f"{classifier}." for classifier in classifiers)
    kept = {
        name: tensor for name, tensor in tensors.items() if name in backbone.state_dict() or not name.startswith(heads)
    }
    try:
        backbone.load_state_dict(kept)
    except RuntimeError as error:
        lost = sorted(set(backbone.state_dict()) - set(kept))
        why = f"it lacks {', '.join(lost[:3])}{', …' if len(lost) > 3 else ''}" if lost else reason(error)
        raise UserError(f"{file} does not fit the architecture: {why}") from error


def open_encoder(name: str) -> ImageEncoder | TextEncoder:
    """The encoder of a name, in evaluation state, on the CPU.

    "timm:…" (see `open_timm`) encodes images, "sentence-transformers:FOLDER" texts; what `open_model` takes (a RUN,
    open_clip:NAME[:TAG], local-dir:DIR) encodes both. `isinstance(encoder, ImageEncoder)` tells.
    Raises UserError if there is none of that name.
    """
    if name.startswith("timm:"):
        return open_timm(name.removeprefix("timm:"))
    if name.startswith("sentence-transformers:"):
        return open_sentence_encoder(Path(name.removeprefix("sentence-transformers:")))
    if name.startswith("open_clip:") and name.count(":") < 2:
        raise UserError(f"{name!r} has no weights, its features would be random; name some: {name}:TAG")
    return open_model(name)
