"""Feature columns: every row's image and texts through frozen encoders, as float16 unit rows."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from truepair import __version__
from truepair.annotate.chunk import Chunk, Rows
from truepair.annotate.identity import content, weights
from truepair.annotate.parts import Parts
from truepair.annotate.reading import Counting, Progress, Reader, encode_texts
from truepair.annotate.regions import Pooled, Regions
from truepair.annotate.seeing import Eyes, encode_images, fitting_batch
from truepair.errors import UserError
from truepair.models.encoders import ImageEncoder, TextEncoder
from truepair.pairs.table import PairTable

LOG = "skipped-embed.jsonl"


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_table` made.

    columns: name -> shape. rows: of the table; embedded: by this process, now (parts of a killed run are not done
    again). skipped: reason -> rows; empty on ranks other than 0.
    """

    table: Path
    columns: dict[str, tuple[int, ...]]
    rows: int
    embedded: int
    seconds: float
    skipped: dict[str, int]


@contextmanager
def silent(stage: str, total: int) -> Iterator[Progress]:
    """A `Counting` that shows nothing."""
    yield lambda count: None


def embed_table(
    table: PairTable,
    out: str | Path,
    name: str,
    *,
    image: ImageEncoder | None = None,
    text: TextEncoder | None = None,
    regions: Regions | None = None,
    captions: str = "",
    overwrite: bool = False,
    batch_size: int = 0,
    workers: int = 0,
    counting: Counting = silent,
) -> EmbedResult:
    """Make the table `out`: `table` with the columns NAME_image and NAME_text, of whichever encoder is given.

    NAME_image: (n, D), or (n, R, D) for `regions` other than `Pooled`, the whole image first. NAME_text: (n, D), the
    normalised mean of the features of a row's texts: its captions, or the lists of strings in column `captions`, which
    may as well be tags. All are float16 unit rows. An image that cannot be read and a row without text give zeros,
    which are similar to nothing; they are counted by reason and named in OUT/skipped-embed.jsonl.

    `batch_size`: images or crops of images at once; 0 chooses by the device. `workers` processes decode. On GPUs that
    have it, bf16.
    The pass can be killed and gone on with, and shared by ranks (`Parts`).
    Raises UserError for columns or an `out` that are there already, and if no image of the first rows can be read.
    """
    started = time.perf_counter()
    if not len(table):
        raise UserError(f"{table.path} has no rows; there is nothing to embed")
    regions = regions or Pooled()
    makes: dict[str, dict[str, Any]] = {}
    reader: Reader | None = None
    passes: list[Callable[[Sequence[Rows]], Generator[Chunk, None, None]]] = []
    by = {"by": "truepair embed", "truepair": __version__}
    if image is not None:
        dim = encode_images(image, torch.zeros(1, image.image_size, image.image_size, 3, dtype=torch.uint8)).shape[1]
        shape = (regions.count, dim) if regions.nested else (dim,)
        model = {"model": image.name, "weights": weights(image)}
        makes[f"{name}_image"] = by | model | regions.made() | {"shape": list(shape)}
        passes.append(Eyes(table, image, regions, shape, batch_size or fitting_batch(image), workers).over)
    if text is not None:
        column = captions or table.caption_column
        lists = table.captions(column)
        dim = encode_texts(text, ["a"]).shape[1]
        how = {"texts": column, "pooling": "mean of a row's texts", "shape": [dim]}
        model = {"model": text.name, "weights": weights(text)}
        makes[f"{name}_text"] = by | model | how | {"content": {column: content(lists)}}
        reader = Reader(table, column, text, dim)
        passes.append(reader.over)
    if not makes:
        raise ValueError("neither an image nor a text encoder is given")

    parts = Parts.open(table, Path(out), makes, overwrite=overwrite)
    chunks = list(parts.todo())
    if reader is not None and chunks:
        reader.learn(counting)
    with counting("embedding", parts.share) as advance:
        _run(parts, chunks, list(makes), passes, advance)
    finished = parts.finish(LOG)
    return EmbedResult(
        table=Path(out),
        columns={column: (len(table), *made["shape"]) for column, made in makes.items()},
        rows=len(table),
        embedded=sum(map(len, chunks)),
        seconds=time.perf_counter() - started,
        skipped={} if finished is None else finished.skipped,
    )


def _run(
    parts: Parts,
    chunks: Sequence[Rows],
    names: Sequence[str],
    passes: Sequence[Callable[[Sequence[Rows]], Generator[Chunk, None, None]]],
    advance: Progress,
) -> None:
    streams = [over(chunks) for over in passes]
    try:
        for rows in chunks:
            made = [next(stream) for stream in streams]
            why: dict[int, str] = {}
            for chunk in made:
                for row, reason in chunk.skipped:
                    why[row] = f"{why[row]}; {reason}" if row in why else reason
            columns = {name: chunk.features for name, chunk in zip(names, made, strict=True)}
            parts.write(rows, columns, sorted(why.items()))
            advance(len(rows))
    finally:
        for stream in streams:
            stream.close()
