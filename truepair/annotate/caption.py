"""Synthetic captions: a captioner looks at the images of a table, and what it writes becomes a column."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

import truepair
from truepair.annotate.identity import content, weights
from truepair.annotate.parts import Parts
from truepair.annotate.preparing import PreparedImages, Rows
from truepair.annotate.scribe import CLOSE, REJECTED, Accept, Note, Scribe
from truepair.annotate.sharing import said_by_rank_0
from truepair.errors import UserError
from truepair.losses.distributed import world_size
from truepair.models.image_to_text import Captioner, Decoding
from truepair.models.likeness import Judge
from truepair.models.run_captioner import RunCaptioner
from truepair.pairs.columns import Column
from truepair.pairs.table import PairTable
from truepair.pairs.workers import items

LOG = "skipped-caption.jsonl"
JUDGED = {"score": "_score", "raw_score": "_raw_score", "rejected": "_rejected"}  # of a note: the column NAME + this
SHOWN = {"concepts": "_concepts"}
NOT_LOOKED_AT = Note()

Progress = Callable[[int], None]  # called with the number of rows just done, by all ranks as far as this one can tell;
# the first call, before any is done, is about those that were there already


@dataclass(frozen=True)
class Captioned:
    """What came of it. table: the new one. rows: that have captions now, of `looked_at`. skipped: count by reason.

    Where captions are judged: `better` of the `judged` rows, those that have a raw and a written caption, have a
    written one at least as like the image as the best raw one. rejected: captions that were not accepted.
    """

    table: Path
    column: str
    looked_at: int
    rows: int
    captions: int
    skipped: dict[str, int]
    judged: int = 0
    better: int = 0
    rejected: int = 0


def caption_table(
    table: PairTable,
    captioner: Captioner | RunCaptioner,
    out: Path,
    *,
    name: str = "synthetic",
    decoding: Decoding | None = None,
    min_p_noise: float = 0.0,
    accept: Accept = "all",
    margin: float = 0.0,
    judge: Judge | None = None,
    raw: str = "",
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Captioned | None:
    """Write the table `out`: `table` with the column `name`, a list of up to `decoding.n` captions for every row.

    Rows that are not looked at (p_noise below `min_p_noise`, or unknown), that cannot be read, or for which the model
    writes nothing have an empty list; the latter two are counted and named in OUT/skipped-caption.jsonl. The captions
    in force stay those they were. Killed at any moment, the same call goes on; ranks share the rows (`Parts`), and
    all but the first get None. A run's modules and torch's random state are left as they were.

    A run's captions are judged by its own towers, or by `judge`; an external captioner's by `judge`, if there is one.
    Then there are columns too of the cosine with the image: NAME_score of the best caption written, NAME_raw_score of
    the best raw one (of column `raw`, "": those in force), float32, NaN where there is none. With `accept` "better" a
    caption less like the image than the best raw one, or more by less than `margin` logits (cosine times the judge's
    1/τ), goes to the column NAME_rejected instead; rows left without any are counted and named. That is the filter of
    CapFilt (Li et al. 2022, sec. 4.3) by cosine in place of an image-text matching head (ours). NAME_concepts: the
    concepts that a run's captioner was shown.
    Raises UserError for names, files and models that do not fit, and where all of the first part's rows give nothing;
    Stopped, on all ranks, where `stop` says so, which is asked between parts and must say the same to every rank.
    """
    decoding = decoding or Decoding()
    looked_at = _looked_at(table, min_p_noise)
    captioner = captioner.at(table) if isinstance(captioner, RunCaptioner) else captioner
    scribe = Scribe(captioner, decoding, seed, accept, margin, judge, table.captions(raw))
    if not 0 <= margin < math.inf or (margin and accept == "all"):
        raise UserError(f"--margin {margin} makes no sense; it is 0 or more logits, with --accept better")
    if accept == "better" and not scribe.judges:
        raise UserError("--accept better compares captions by two towers; name some: --judge RUN or open_clip:NAME:TAG")
    made = {
        "by": "truepair caption",
        "model": captioner.name,
        "weights": said_by_rank_0(lambda: weights(captioner.model)),
        "decoding": _of_use(decoding),
        "prompt": captioner.prompt,
        "seed": seed,
        "min_p_noise": min_p_noise,
        "precision": captioner.precision,
        "versions": {"truepair": truepair.__version__, "transformers": captioner.version},
        **_made_beside(scribe),
    }
    contents: dict[str, Column] = {"p_noise": table.numbers("p_noise")} if min_p_noise else {}
    if isinstance(captioner, RunCaptioner) and captioner.column:
        contents[captioner.column] = table.numbers(captioner.column)
    contents |= {"raw captions": scribe.raw} if scribe.judges else {}
    if contents:
        made["content"] = {what: content(column) for what, column in contents.items()}
    columns = _columns(table, name, scribe)
    for column in ("source", "offset", "size", "path"):
        table.column(column)  # mapped here once, so that no worker has to
    parts = Parts.open(table, out, dict.fromkeys(columns, made), overwrite=overwrite)
    if progress is not None:
        progress(parts.done)
    chunks = list(parts.todo())
    gpus = [captioner.device] if captioner.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), closing(_written(table, scribe, chunks, looked_at, batch_size, workers)) as notes:
        for rows in parts.todo(stop):
            of_rows = next(notes)
            skipped = [(row, note.skipped) for row, note in zip(rows.tolist(), of_rows, strict=True) if note.skipped]
            reasons = {reason for _, reason in skipped}
            tried = int(looked_at[rows].sum())
            if rows[0] == 0 and 0 < tried == len(skipped) and not reasons & {REJECTED, CLOSE}:  # later: a damaged shard
                raise UserError(
                    f"none of the rows {rows[0]} to {rows[-1]} gave a caption ({', '.join(sorted(reasons))}); "
                    f"check {table.path}"
                )
            parts.write(rows, {column: _values(of_rows, part) for column, part in columns.items()}, skipped)
            if progress is not None:
                progress(len(rows) * world_size())
    finished = parts.finish(LOG)
    if finished is None:
        return None
    counts = finished.table.captions(name).counts
    result = Captioned(out, name, int(looked_at.sum()), int((counts > 0).sum()), int(counts.sum()), finished.skipped)
    return _with_judgement(result, finished.table) if scribe.judges else result


def _written(
    table: PairTable,
    scribe: Scribe,
    chunks: Sequence[Rows],
    looked_at: npt.NDArray[np.bool_],
    batch_size: int,
    workers: int,
) -> Generator[list[Note], None, None]:
    """The notes of a chunk's rows after the other; images are prepared ahead by one set of workers."""
    batches = [_batches(rows[looked_at[rows]], batch_size) for rows in chunks]
    plan = [batch for of_chunk in batches for batch in of_chunk]
    source = PreparedImages(table, scribe.preparer, plan)
    pin = scribe.captioner.device.type == "cuda"
    with closing(items(source, range(len(plan)), workers=workers, pin=pin)) as prepared:
        for rows, of_chunk in zip(chunks, batches, strict=True):
            notes: dict[int, Note] = {}
            for _ in of_chunk:
                notes |= scribe.write(next(prepared))
            yield [notes.get(row, NOT_LOOKED_AT) for row in rows.tolist()]


def _looked_at(table: PairTable, min_p_noise: float) -> npt.NDArray[np.bool_]:
    """(n,) True for the rows to caption."""
    if not 0 <= min_p_noise <= 1:
        raise UserError(f"--min-p-noise {min_p_noise} makes no sense; it is a probability")
    if min_p_noise == 0:
        return np.ones(len(table), np.bool_)
    p_noise = table.numbers("p_noise")
    if p_noise.ndim != 1:
        raise UserError(f"column 'p_noise' of {table.path} does not hold one number a row")
    chosen: npt.NDArray[np.bool_] = np.asarray(p_noise) >= min_p_noise
    return chosen


def _batches(rows: Rows, size: int) -> list[Rows]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _of_use(decoding: Decoding) -> dict[str, Any]:
    """The settings that matter to the method chosen."""
    idle = {"nucleus": ("beams",), "beam": ("top_p", "temperature"), "greedy": ("beams", "top_p", "temperature")}
    return {key: value for key, value in asdict(decoding).items() if key not in idle[decoding.method]}


def _made_beside(scribe: Scribe) -> dict[str, Any]:
    """What else the columns depend on: a run's step and concepts, who judged, and what was accepted."""
    made: dict[str, Any] = {}
    if isinstance(scribe.captioner, RunCaptioner):
        made |= {"step": scribe.captioner.step, "concepts_per_image": scribe.captioner.concepts_per_image}
    if scribe.judges:
        made |= {"accept": scribe.accept, "margin": scribe.margin}
    if (judge := scribe.judge) is not None:
        of_judge = said_by_rank_0(lambda: weights(judge.model))
        made["judge"] = {"model": judge.model.name, "weights": of_judge, "precision": judge.precision}
    return made


def _columns(table: PairTable, name: str, scribe: Scribe) -> dict[str, str]:
    """The columns to write, and which part of a row's note each holds.

    Raises UserError if the table would keep columns that speak of a former column `name`.
    """
    beside = (JUDGED if scribe.judges else {}) | (SHOWN if isinstance(scribe.captioner, RunCaptioner) else {})
    columns = {name: "texts"} | {name + suffix: part for part, suffix in beside.items()}
    known = {name + suffix for suffix in (JUDGED | SHOWN).values()}
    stale = sorted((known - set(columns)).intersection(table.column_names))
    if name in table.column_names and stale:
        raise UserError(
            f"{', '.join(stale)} of {table.path} would speak of captions overwritten; choose another --name"
        )
    return columns


def _values(notes: Sequence[Note], part: str) -> npt.NDArray[np.float32] | pa.Array:
    """That part of rows' notes as a column."""
    values = [getattr(note, part) for note in notes]
    return np.array(values, np.float32) if part.endswith("score") else pa.array(values, pa.list_(pa.string()))


def _with_judgement(result: Captioned, table: PairTable) -> Captioned:
    score, raw_score = (table.numbers(result.column + JUDGED[part]) for part in ("score", "raw_score"))
    return replace(
        result,
        judged=int((np.isfinite(score) & np.isfinite(raw_score)).sum()),
        better=int((score >= raw_score).sum()),
        rejected=int(table.captions(result.column + JUDGED["rejected"]).counts.sum()),
    )
