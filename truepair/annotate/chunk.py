"""Features of a chunk of rows, as encoders of images and of texts hand them over."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from truepair.train.devices import autocast

NOT_FINITE = "features not finite"

Rows = npt.NDArray[np.int64]
Features = npt.NDArray[np.float16]


@dataclass
class Chunk:
    """Features (m, …) of a chunk's rows, and why some of them are zeros."""

    features: Features
    skipped: list[tuple[int, str]] = field(default_factory=list)


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """What frozen encoders compute in: bf16 on a GPU that has it, else float32."""
    return autocast("auto", device) if device.type == "cuda" else nullcontext()
