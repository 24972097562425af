"""Image features of a table's rows: decoded in workers, a view for every region, encoded in batches."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.annotate.chunk import NOT_FINITE, Chunk, Rows, precision
from truepair.annotate.regions import BAD_BOX, Regions
from truepair.errors import UserError
from truepair.evaluate.features import reasons
from truepair.models.encoders import ImageEncoder
from truepair.pairs.image import ImageError, decode_regions
from truepair.pairs.table import PairTable
from truepair.pairs.workers import items

CPU_PIXELS = 1 << 19  # of a batch on a CPU: one of 256 images of 256 px took six times as long as 64 of 4 (ours)


def fitting_batch(encoder: ImageEncoder) -> int:
    """Images at once: 256 on a GPU; on a CPU fewer the larger they are, for memory there is slow to be had anew."""
    return 256 if encoder.device.type != "cpu" else max(4, CPU_PIXELS // encoder.image_size**2)


def encode_images(encoder: ImageEncoder, pixels: Tensor) -> npt.NDArray[np.float32]:
    """(B, S, S, 3) uint8 -> (B, D) float32 unit rows."""
    with torch.inference_mode(), precision(encoder.device):
        images = pixels.to(encoder.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        return encoder.encode_image(images).float().cpu().numpy()


@dataclass(frozen=True)
class _Views:
    """A batch as a worker hands it over: `counts` views of each row that could be decoded, one after another."""

    places: list[int]  # of those rows in the batch
    counts: list[int]
    pixels: Tensor  # (sum of counts, S, S, 3) uint8
    skipped: list[tuple[int, str]]

    def pin_memory(self) -> "_Views":
        """Page-locked copy (called by DataLoader)."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class _Decoder:
    """Item i holds the views of the images of rows batches[i]."""

    table: PairTable
    regions: Regions
    size: int
    squash: bool
    batches: Sequence[Rows]

    def __getitem__(self, index: int) -> _Views:
        places, views, skipped = [], [], []
        for place, row in enumerate(self.batches[index].tolist()):
            crops, bad = self.regions.crops(row)
            try:
                found = decode_regions(self.table.image_bytes(row), self.size, crops, squash=self.squash)
            except ImageError as error:
                skipped.append((row, error.reason))
            except OSError:
                skipped.append((row, "missing or changed file"))
            else:
                places.append(place)
                views.append(found)
                if bad:
                    skipped.append((row, BAD_BOX))
        none = np.empty((0, self.size, self.size, 3), np.uint8)
        return _Views(places, list(map(len, views)), torch.from_numpy(np.concatenate([none, *views])), skipped)


@dataclass(frozen=True)
class Eyes:
    """Image features of chunks of rows, decoded ahead by one set of workers."""

    table: PairTable
    encoder: ImageEncoder
    regions: Regions
    shape: tuple[int, ...]  # of a row's features
    batch_size: int
    workers: int

    def over(self, chunks: Sequence[Rows]) -> Generator[Chunk, None, None]:
        """A chunk's features after the other."""
        step = max(1, self.batch_size // self.regions.count)
        split = [[rows[at : at + step] for at in range(0, len(rows), step)] for rows in chunks]
        batches = [batch for parts in split for batch in parts]
        decoder = _Decoder(self.table, self.regions, self.encoder.image_size, self.encoder.squash, batches)
        pin = self.encoder.device.type == "cuda"
        with closing(items(decoder, range(len(batches)), workers=self.workers, pin=pin)) as decoded:
            for rows, parts in zip(chunks, split, strict=True):
                made = Chunk(np.zeros((len(rows), *self.shape), np.float16))
                seen = at = 0
                for batch in parts:
                    views = next(decoded)
                    made.skipped.extend(views.skipped)
                    seen += len(views.places)
                    self._fill(made, rows, at, views)
                    at += len(batch)
                if not seen and rows[0] == 0:
                    why = ", ".join(f"{count} x {reason}" for reason, count in reasons(made.skipped).items())
                    raise UserError(f"no image of the first {len(rows)} rows of {self.table.path} can be read: {why}")
                yield made

    def _fill(self, made: Chunk, rows: Rows, at: int, views: _Views) -> None:
        """Put the features of a batch that begins at `at` where they belong."""
        if not views.places:
            return
        encoded = encode_images(self.encoder, views.pixels)
        counts = np.array(views.counts)
        owner = np.repeat(at + np.array(views.places), counts)
        view = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        by_view = made.features.reshape(len(rows), -1, encoded.shape[1])
        by_view[owner, view] = encoded
        for place in np.unique(owner[~np.isfinite(encoded).all(axis=1)]):
            by_view[place] = 0
            made.skipped.append((int(rows[place]), NOT_FINITE))
