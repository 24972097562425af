"""Evidence of small tables, made by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from truepair.noise.issues.base import Evidence
from truepair.noise.issues.looks import Looks
from truepair.pairs.columns import StringLists, Strings


def string_lists(lists: Sequence[Sequence[str]]) -> StringLists:
    """As a table maps them."""
    coded = [text.encode() for texts in lists for text in texts]
    blob = np.frombuffer(b"".join(coded), np.uint8)
    ends = np.cumsum([len(text) for text in coded], dtype=np.int64)
    return StringLists(Strings(blob, ends), np.cumsum([len(texts) for texts in lists], dtype=np.int64))


def looks_of(hashes: Sequence[int], colours: Any = None, spread: float = 50.0) -> Looks:
    n = len(hashes)
    shown = np.zeros((n, 12), np.uint8) if colours is None else np.asarray(colours, np.uint8)
    return Looks(np.ones(n, bool), np.array(hashes, np.uint64), shown, np.full(n, spread, np.float32))


def evidence(captions: Sequence[Sequence[str]] | None = None, n: int | None = None, **known: Any) -> Evidence:
    """Of n sound pairs with images of their own that look alike to nobody, but for what is `known`."""
    captions = [["some thing"]] * (n or 0) if captions is None else captions
    n = len(captions)
    generator = np.random.default_rng(0)
    default = {
        "captions": string_lists(captions),
        "image": np.arange(n),
        "width": np.full(n, 64),
        "height": np.full(n, 48),
        "undecodable": np.zeros(n, bool),
        "looks": looks_of(generator.integers(0, 2**64, n, np.uint64)),
        "cosine": np.full(n, 0.3, np.float32),
        "neg_clip_loss": np.full(n, -0.1, np.float32),
        "p_noise": np.zeros(n, np.float32),
    }
    return Evidence(**(default | known))


@dataclass
class Unit:
    """Features of rows as `Features` wants them, all in memory."""

    image: torch.Tensor
    text: torch.Tensor
    rows: np.ndarray

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def of(self, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image[torch.from_numpy(places)], self.text[torch.from_numpy(places)]
