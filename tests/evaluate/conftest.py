"""A tiny model that sees colours and reads their names, and tables and folders of coloured squares to try it on."""

import io
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from truepair.pairs.table import PAIRS, SCHEMA, PairTable

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 20),
    "cyan": (20, 220, 220),
    "black": (10, 10, 10),
}


class ColourModel(nn.Module):
    """Features are centred RGB: of an image its mean colour, of a text the mean of the colours it names."""

    name, image_size, squash, context_length = "colours", 8, False, 64

    def __init__(self) -> None:
        super().__init__()
        self.widest_batch = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def scale(self) -> Tensor:
        return torch.tensor(20.0)

    def tokenize(self, texts: list[str]) -> Tensor:
        coded = [list(text.encode()[:64]) for text in texts]
        longest = max(map(len, coded))
        return torch.tensor([code + [0] * (longest - len(code)) for code in coded])

    def encode_image(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8) and not self.training
        self.widest_batch = max(self.widest_batch, len(images))
        return normalize(images.float().mean(dim=(2, 3)) - 127.5, dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        texts = [bytes(row.tolist()).rstrip(b"\0").decode() for row in tokens]
        named = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(128, 127, 127)] for text in texts]
        return normalize(torch.tensor(np.array([np.mean(colours, axis=0) for colours in named])).float() - 127.5, dim=1)


def square(colour: str, shift: int = 0) -> bytes:
    """PNG bytes of a square; `shift` makes other bytes of nearly the same colour."""
    file = io.BytesIO()
    Image.new("RGB", (12, 10), tuple(min(value + shift, 255) for value in COLOURS[colour])).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def model() -> ColourModel:
    return ColourModel()


@pytest.fixture(name="square")
def _square() -> Callable[..., bytes]:
    return square


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[[Sequence[tuple[bytes, list[str]]]], PairTable]:
    """Writes (image bytes, captions) pairs as a pair table over a folder."""

    def make(pairs: Sequence[tuple[bytes, list[str]]]) -> PairTable:
        path = tmp_path / "table"
        (path / "images").mkdir(parents=True)
        for row, (image, _) in enumerate(pairs):
            (path / "images" / f"{row}.png").write_bytes(image)
        n = len(pairs)
        values = {
            "row": range(n),
            "key": [f"k{row}" for row in range(n)],
            "source": [0] * n,
            "offset": [-1] * n,
            "size": [len(image) for image, _ in pairs],
            "path": [f"{row}.png" for row in range(n)],
            "caption": [captions for _, captions in pairs],
            "width": [12] * n,
            "height": [10] * n,
            "sha": [sha256(image).hexdigest()[:32] for image, _ in pairs],
        }
        pq.write_table(pa.table({name: list(column) for name, column in values.items()}, schema=SCHEMA), path / PAIRS)
        meta = {
            "version": 1,
            "caption_column": "caption",
            "sources": [{"path": "images", "kind": "folder", "column": ""}],
            "made": {},
        }
        (path / "table.json").write_text(json.dumps(meta))
        return PairTable.open(path)

    return make
