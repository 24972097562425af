"""Concept columns: for every image, the names of a vocabulary that a dual encoder finds nearest to it."""

import importlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair import __version__
from truepair.annotate.chunk import NOT_FINITE, Chunk, Rows
from truepair.annotate.embed import silent
from truepair.annotate.identity import content, digest, weights
from truepair.annotate.parts import Parts
from truepair.annotate.reading import Counting, encode_texts
from truepair.annotate.regions import Pooled
from truepair.annotate.seeing import Eyes, fitting_batch
from truepair.errors import UserError
from truepair.losses.distributed import rank
from truepair.models.concepts import PROMPTS, ConceptBank
from truepair.models.encoders import ImageEncoder, TextEncoder
from truepair.pairs.table import PairTable

LOG = "skipped-concepts.jsonl"
NO_FEATURES = "no image features"

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (b, D), k -> scores and ids (b, k), as ConceptBank.nearest


@dataclass(frozen=True)
class ConceptsResult:
    """What `add_concepts` made.

    columns: name -> shape. concepts: in the vocabulary. rows: of the table; compared: by this process, now (parts of a
    killed run are not done again). skipped: reason -> rows; empty on ranks other than 0.
    """

    table: Path
    columns: dict[str, tuple[int, int]]
    concepts: int
    rows: int
    compared: int
    seconds: float
    skipped: dict[str, int]


def add_concepts(
    table: PairTable,
    out: str | Path,
    names: Sequence[str],
    encoder: TextEncoder,
    *,
    name: str = "concepts",
    k: int = 10,
    features: str = "",
    source: str = "",
    search: Literal["torch", "faiss"] = "torch",
    overwrite: bool = False,
    batch_size: int = 0,
    workers: int = 0,
    counting: Counting = silent,
) -> ConceptsResult:
    """Make the table `out`: `table` with the k concepts nearest to each image by cosine, the nearest first.

    NAME: (n, k) int32, places in `names`, which table.json keeps with the column, and OUT/NAME.txt one a line.
    NAME_score: (n, k) float16 cosines. A row whose image cannot be read has ids -1 and scores NaN, and so have places
    beyond the vocabulary; skipped rows are counted by reason and named in OUT/skipped-concepts.jsonl.

    Images are encoded by `encoder`, or their features taken from column `features`, which `truepair embed` made with
    the same model. `source`: where the names come from, in words. `search`: exact both.
    The pass can be killed and gone on with, and shared by ranks (`Parts`).
    Raises UserError for no names, for features of another model, and as `Parts` and `Eyes` do.
    """
    started = time.perf_counter()
    if not names:
        raise UserError("there are no concepts to look for")
    if not len(table):
        raise UserError(f"{table.path} has no rows; there is nothing to look at")
    if k < 1:
        raise UserError(f"k = {k} concepts an image make no sense; take 1 or more")
    bank = ConceptBank(names, encode_texts(encoder, ["a"]).shape[1]).to(encoder.device)
    if features:
        seen, images = _Stored(table, features, bank, encoder).over, {features: content(table.numbers(features))}
    elif isinstance(encoder, ImageEncoder):
        shape = (bank.features.shape[1],)
        seen = Eyes(table, encoder, Pooled(), shape, batch_size or fitting_batch(encoder), workers).over
        images = {}
    else:
        raise UserError(f"model {encoder.name} cannot encode images; name two towers, or features it goes with")
    made: dict[str, Any] = {
        "by": "truepair concepts",
        "truepair": __version__,
        "model": encoder.name,
        "weights": weights(encoder),
        "prompts": list(PROMPTS),
        "search": search,
        "shape": [len(table), k],
        "features": images,
        "vocabulary": digest(np.array(names)),
        "source": source,
    }
    parts = _opened(table, Path(out), {name: made | {"names": list(names)}, f"{name}_score": made}, overwrite)
    chunks = list(parts.todo())
    if chunks:
        bank.refresh(encoder)
    nearest = by_faiss(bank) if search == "faiss" else bank.nearest
    with counting("finding concepts", parts.share) as advance, closing(seen(chunks)) as stream:
        for rows, chunk in zip(chunks, stream, strict=True):
            ids, scores = _found(chunk, nearest, k, encoder.device)
            parts.write(rows, {name: ids, f"{name}_score": scores}, sorted(chunk.skipped))
            advance(len(rows))
    finished = parts.finish(LOG)
    if rank() == 0:
        (Path(out) / f"{name}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return ConceptsResult(
        table=Path(out),
        columns={column: (len(table), k) for column in (name, f"{name}_score")},
        concepts=len(names),
        rows=len(table),
        compared=sum(map(len, chunks)),
        seconds=time.perf_counter() - started,
        skipped={} if finished is None else finished.skipped,
    )


def _opened(table: PairTable, out: Path, makes: dict[str, dict[str, Any]], overwrite: bool) -> Parts:
    """The pass; the refusal to go on with another vocabulary does not recite it."""
    try:
        return Parts.open(table, out, makes, overwrite=overwrite)
    except UserError as error:
        raise UserError(re.sub(r"names \[.*\] \(now \[.*\]\)", "names others", str(error), flags=re.DOTALL)) from None


def _found(
    chunk: Chunk, nearest: Search, k: int, device: torch.device
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """Ids and scores (m, k) of a chunk's images; -1 and NaN where the features are zeros."""
    features = torch.from_numpy(chunk.features).to(device)
    scores, ids = (found.cpu().numpy() for found in nearest(features, k))
    blank = ~chunk.features.any(axis=1)
    scores[blank], ids[blank] = np.nan, -1
    return ids.astype(np.int32), scores.astype(np.float16)


class _Stored:
    """Image features of chunks of rows from a column, as `Eyes` gives them."""

    def __init__(self, table: PairTable, column: str, bank: ConceptBank, encoder: TextEncoder) -> None:
        values = table.numbers(column)
        dim = bank.features.shape[1]
        if values.ndim not in (2, 3) or values.shape[-1] != dim:
            raise UserError(f"column {column!r} of {table.path} holds {values.shape}, not features of {dim} numbers")
        made = table.made.get(column, {}).get("weights")
        if made and made != weights(encoder):
            whose = table.made[column].get("model", "another model")
            raise UserError(f"column {column!r} was made by {whose}, with other weights than {encoder.name} has")
        self.values = values if values.ndim == 2 else values[:, 0]  # of several regions the whole image is the first

    def over(self, chunks: Sequence[Rows]) -> Generator[Chunk, None, None]:
        """A chunk's features after the other."""
        for rows in chunks:
            own = np.asarray(self.values[rows], np.float32)
            bad = ~np.isfinite(own).all(axis=1)
            own[bad] = 0
            own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
            skipped = [(int(row), NOT_FINITE) for row in rows[bad]]
            skipped += [(int(row), NO_FEATURES) for row in rows[~bad & ~own.any(axis=1)]]
            yield Chunk(own.astype(np.float16), skipped)


def by_faiss(bank: ConceptBank) -> Search:
    """`bank.nearest` by faiss's flat index, on the CPU. Raises UserError where faiss is not installed."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise UserError("--search faiss needs faiss: pip install 'truepair[faiss]'; or leave it out") from None
    index = faiss.IndexFlatIP(bank.features.shape[1])
    index.add(bank.features.cpu().numpy())

    def nearest(images: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = index.search(images.float().cpu().numpy(), k)
        scores[ids < 0] = np.nan
        return torch.from_numpy(scores), torch.from_numpy(ids)

    return nearest
