"""What an audit leaves in its folder for the next one: scores that need not be computed again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from truepair import __version__
from truepair.annotate.identity import content, digest, images, weights
from truepair.errors import UserError, reason
from truepair.evaluate.evidence import SYNTHETIC, UNREAD, Seen
from truepair.evaluate.features import Encoder, Skipped, towers_of
from truepair.evaluate.noise import PairScores
from truepair.models.matcher import Matcher
from truepair.noise import Mixture
from truepair.noise.issues.base import Found, Issue
from truepair.noise.issues.looks import MEANING, Looks
from truepair.pairs.columns import STREAM_ROWS, whole, write_parquet
from truepair.pairs.table import PairTable

FILE, RECORD = "audit.parquet", "audit.json"
SIGNATURE = b"truepair.audit"  # in the schema of FILE: the `id` of the RECORD it was written with
FOLDER, PASS, SIGNED = "scores", "pass.parquet", "pass.json"  # of what one pass over the images found


def scoring(model: Encoder | Matcher, table: PairTable, scale: float, negatives: int, seed: int) -> dict[str, Any]:
    """All that scores depend on; digests of weights, images and captions, so that neither may have changed since."""
    synthetic = SYNTHETIC in table.column_names
    return {
        "model": towers_of(model).name,
        "weights": weights(model.model if isinstance(model, Matcher) else model),
        "images": images(table),
        "caption_column": table.caption_column,
        "captions": content(table.captions()),
        "synthetic": content(table.column(SYNTHETIC)) if synthetic else None,
        "itm": isinstance(model, Matcher),
        "looks": MEANING,
        "scale": scale,
        "negatives": negatives,
        "seed": seed,
    }


@dataclass(frozen=True)
class Former:
    """An audit that is there. record: its audit.json, which has the same scores as are wanted now."""

    record: dict[str, Any]
    file: Path

    def found(self, issue: Issue) -> Found | None:
        """What it found of an issue; None if it did not look for it, or the issue is another now."""
        told = next((told for told in self.record["issues"] if told["name"] == issue.name), None)
        same = told and (told["threshold"], told["explanation"]) == (issue.threshold, issue.explanation)
        if not told or not same or told["skipped"] is not None:
            return None
        name = issue.name
        columns = pq.read_table(self.file, columns=[name, *([told["group_column"]] if told["grouped"] else [])])
        group = None
        if told["grouped"]:
            group = pc.fill_null(columns[told["group_column"]], -1).to_numpy().astype(np.int64)
        return Found(_floats(columns[name]), group)


def former(out: Path, wanted: dict[str, Any]) -> Former | None:
    """The audit in `out`, if it is of the scores that `scoring` describes; None if there is none such.

    Nor is there one if its two files were not written together, or one of them is missing or damaged.
    """
    record = _record(out / RECORD)
    same = record.get("truepair") == __version__ and record.get("settings", {}).get("scores") == wanted
    return Former(record, out / FILE) if same and record.get("id") == _signature(out / FILE) else None


def id_of(record: dict[str, Any]) -> str:
    """A name for what a record says: the same audit again has the same."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return digest(np.frombuffer(text.encode(), np.uint8))


def write_columns(file: Path, columns: dict[str, Any], signature: str) -> None:
    """Write an audit's columns, whole or not at all, with the `id` of the record that they belong to."""
    stored = pa.table(columns).replace_schema_metadata({SIGNATURE: signature})
    with whole(file) as partial:
        pq.write_table(stored, partial, row_group_size=STREAM_ROWS)


def _signature(file: Path) -> str:
    """The id that is written in an audit's columns; "" where there is none, or no file that can be read."""
    try:
        signed: dict[bytes, bytes] = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return ""
    return signed.get(SIGNATURE, b"").decode("ascii", "replace")


def remember(out: Path, seen: Seen, wanted: dict[str, Any]) -> None:
    """Keep in `out`/scores what a pass found, about 50 bytes a row, before anything is made of it."""
    folder, scores, looks = out / FOLDER, seen.scores, seen.looks
    (folder / SIGNED).unlink(missing_ok=True)  # until it is written again, what lies there is nobody's
    columns: dict[str, Any] = {
        "cosine": scores.cosine,
        "neg_clip_loss": scores.neg_clip_loss,
        "p_noise": scores.p_noise,
        **({} if scores.itm is None else {"itm": scores.itm}),
        **({} if seen.synthetic is None else {"synthetic": seen.synthetic}),
        "problem": problems(scores, len(looks)),
        "seen": looks.seen,
        "hash": looks.hash,
        "colours": looks.colours,
        "spread": looks.spread,
    }
    write_parquet(folder / PASS, columns)
    signed = {"truepair": __version__, "scores": wanted, "mixture": scores.mixture.to_dict()}
    write_json(folder / SIGNED, signed)


def recall(out: Path, wanted: dict[str, Any], table: PairTable) -> Seen | None:
    """What `remember` kept in `out`, without features, if it was of the same; None if there is nothing such.

    Nor is there if `table` now gives an image that could not be read then.
    """
    folder = out / FOLDER
    signed = _record(folder / SIGNED)
    if signed.get("truepair") != __version__ or signed.get("scores") != wanted or not (folder / PASS).is_file():
        return None
    try:
        stored = pq.read_table(folder / PASS)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder / PASS} cannot be read ({reason(error)}); score anew with --again") from None
    names = stored.column_names
    told = np.flatnonzero(np.asarray(pc.not_equal(stored["problem"], "")))
    skipped = list(zip(told.tolist(), stored["problem"].take(pa.array(told)).to_pylist(), strict=True))
    if _came_back(table, skipped):
        return None
    floats = {name: _floats(stored[name]) for name in ("cosine", "neg_clip_loss", "p_noise")}
    scores = PairScores(
        **floats,
        mixture=Mixture.from_dict(signed["mixture"]),
        skipped=skipped,
        itm=_floats(stored["itm"]) if "itm" in names else None,
    )
    looks = Looks(
        np.asarray(stored["seen"]),
        np.asarray(stored["hash"]),
        stored["colours"].combine_chunks().flatten().to_numpy().reshape(-1, 12),
        np.asarray(stored["spread"]),
    )
    return Seen(scores, looks, _floats(stored["synthetic"]) if "synthetic" in names else None)


def passing(compared: Sequence[dict[str, Any]]) -> bool:
    """Whether of second tables, as `Compared.to_json` tells of them, files could not be read that may be there now."""
    return any(UNREAD in second["unseen"] for second in compared)


def _came_back(table: PairTable, skipped: Sequence[Skipped]) -> bool:
    for row, why in skipped:
        if why == UNREAD:
            try:
                table.image_bytes(row)
            except OSError:
                continue  # it is as it was
            return True
    return False


def problems(scores: PairScores, n: int) -> pa.Array:
    """(n,) strings: why a row has no score, "" if it has one."""
    names = ["", *sorted({problem for _, problem in scores.skipped})]
    code = np.zeros(n, np.int32)
    code[[row for row, _ in scores.skipped]] = [names.index(problem) for _, problem in scores.skipped]
    return pa.DictionaryArray.from_arrays(pa.array(code), pa.array(names)).cast(pa.string())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all. Raises ValueError for a number that is not finite."""
    text = json.dumps(value, allow_nan=False)
    with whole(path) as partial:
        partial.write_text(text + "\n")


def _record(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing. Raises UserError for one that cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, or score anew with --again") from None
    return value if isinstance(value, dict) else {}


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Null as NaN."""
    values: npt.NDArray[np.float32] = pc.fill_null(column, float("nan")).to_numpy().astype(np.float32)
    return values
