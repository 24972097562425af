"""Text features of a table's rows: equal texts encoded once, a row's texts averaged."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from truepair.annotate.chunk import NOT_FINITE, Chunk, Rows, precision
from truepair.models.encoders import TextEncoder
from truepair.pairs.table import PairTable

VOCABULARY = 65_536  # distinct texts of a table that are encoded once and kept; beyond it, once a chunk of rows
TEXT_BATCH = 512
NO_TEXT = "no text"

Floats = npt.NDArray[np.float32]
Progress = Callable[[int], None]
Counting = Callable[[str, int], AbstractContextManager[Progress]]  # a stage's name and how much it has to do


def encode_texts(encoder: TextEncoder, texts: list[str]) -> Floats:
    """n texts -> (n, D) float32 unit rows."""
    with torch.inference_mode(), precision(encoder.device):
        return encoder.encode_text(encoder.tokenize(texts).to(encoder.device)).float().cpu().numpy()


class Reader:
    """Text features of chunks of rows: the normalised mean over a row's texts."""

    def __init__(self, table: PairTable, column: str, encoder: TextEncoder, dim: int) -> None:
        self.table, self.column, self.encoder, self.dim = table, column, encoder, dim
        self._known: tuple[dict[str, int], Floats] | None = None  # number of each text, features (V, D)

    def learn(self, counting: Counting) -> None:
        """Encode the distinct texts of the whole table, if they are few enough to be kept."""
        texts = _vocabulary(self.table, self.column)
        if texts is not None:
            with counting("encoding distinct texts", len(texts)) as advance:
                self._known = _numbered(texts), self._encode(texts, advance)

    def over(self, chunks: Sequence[Rows]) -> Generator[Chunk, None, None]:
        """A chunk's features after the other."""
        lists = self.table.captions(self.column)
        for rows in chunks:
            texts = [[text for text in lists[row] if text.strip()] for row in rows.tolist()]
            if self._known is None:
                distinct = sorted({text for own in texts for text in own})
                yield self._mean(rows, texts, _numbered(distinct), self._encode(distinct, lambda count: None))
            else:
                yield self._mean(rows, texts, *self._known)

    def _encode(self, texts: Sequence[str], advance: Progress) -> Floats:
        """(n, D): texts of similar length share a batch, so that token rows stay short."""
        features = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), TEXT_BATCH):
            chosen = order[start : start + TEXT_BATCH]
            features[chosen] = encode_texts(self.encoder, [texts[i] for i in chosen])
            advance(len(chosen))
        return features

    def _mean(self, rows: Rows, texts: list[list[str]], number: dict[str, int], features: Floats) -> Chunk:
        counts = [len(own) for own in texts]
        owner = torch.from_numpy(np.repeat(np.arange(len(rows)), counts))
        chosen = torch.tensor([number[text] for own in texts for text in own], dtype=torch.int64)
        sums = torch.zeros(len(rows), self.dim).index_add_(0, owner, torch.from_numpy(features)[chosen])
        means = F.normalize(sums, dim=1).numpy()
        skipped = [(row, NO_TEXT) for row, count in zip(rows.tolist(), counts, strict=True) if not count]
        bad = np.flatnonzero(~np.isfinite(means).all(axis=1))
        means[bad] = 0
        return Chunk(means.astype(np.float16), skipped + [(int(rows[i]), NOT_FINITE) for i in bad])


def _numbered(texts: Sequence[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(texts)}


def _vocabulary(table: PairTable, column: str) -> list[str] | None:
    """The distinct texts of a column, sorted; None if there are more than are kept."""
    found: set[str] = set()
    with pq.ParquetFile(table.parquet(column), memory_map=True) as file:
        for batch in file.iter_batches(8_192, columns=[column]):
            found |= set(pc.unique(pc.list_flatten(batch.column(0)).drop_null()).to_pylist())
            if len(found) > VOCABULARY:
                return None
    return sorted(text for text in found if text.strip())
