"""Pairs of a manifest (Parquet, CSV, TSV, JSONL): an image path or image bytes and captions in each row."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from truepair.errors import UserError
from truepair.pairs.sources.rows import Row, csv_columns, csv_rows, jsonl_columns, jsonl_rows, parquet_rows
from truepair.pairs.sources.sample import (
    KEPT,
    MAX_IMAGE,
    Options,
    Sample,
    Skip,
    Unusable,
    clean_captions,
    is_unicode,
    label_of,
    many,
    path_below,
    read_image,
    scalar,
)
from truepair.pairs.table import Source

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "img_path",
    "image_file",
    "filepath",
    "file_path",
    "file_name",
    "filename",
    "path",
    "file",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
CAPTION_COLUMNS = (
    "captions",
    "caption",
    "text",
    "texts",
    "title",
    "sentences_raw",
    "sentences",
    "sentence",
    "raw",
    "alt_text",
    "alttext",
    "description",
)
KEY_COLUMNS = ("key", "__key__", "uid")


@dataclass(frozen=True)
class Plan:
    """A manifest whose columns are known: which hold the key, the image, the captions, the label and the rest."""

    path: Path
    image: str
    captions: tuple[str, ...]
    key: str
    label: str
    extra: tuple[str, ...]
    root: str

    @property
    def wanted(self) -> list[str]:
        """All columns to read, each once."""
        names = [self.image, *self.captions, self.key, self.label, *self.extra]
        return [name for name in dict.fromkeys(names) if name]


def plan_manifest(path: Path, options: Options) -> Plan:
    """Choose the columns of a manifest, by `options` or by their usual names (any case, first match).

    Raises:
        UserError: the file cannot be read, or has no such column.
    """
    columns = _columns(path)
    image = _chosen(path, columns, "image", [options.image_column] if options.image_column else (), IMAGE_COLUMNS)
    captions = _chosen(path, columns, "caption", options.caption_columns, CAPTION_COLUMNS)
    extra = tuple(name for name in options.extra_columns if name in columns)
    root = str((options.root or path.parent).absolute())
    return Plan(
        path, image[0], captions, _named(columns, KEY_COLUMNS), "label" if "label" in columns else "", extra, root
    )


def read_manifest(plan: Plan, prefix: str) -> Iterator[Sample | Skip]:
    """Every row of a manifest, read as a stream. Key: a column `key`, `__key__` or `uid`, else `prefix` + row number.

    Image bytes inside a Parquet file stay there (offset = row number); paths are relative to the root.
    """
    folder = Source(plan.root, "folder")
    inside = Source(str(plan.path.absolute()), "parquet", plan.image)
    textual = plan.path.suffix.lower() in (".csv", ".tsv")
    number = 0
    try:
        for number, row in _rows(plan):
            key = f"{prefix}{number:09d}"
            notes: list[Skip] = []
            try:
                if isinstance(row, Unusable):
                    raise row
                key = _key(row.get(plan.key), key)
                sample = _sample(plan, key, number, row, folder, inside, textual, notes)
            except Unusable as unusable:
                yield Skip(str(plan.path), key, unusable.reason, unusable.detail)
            else:
                yield from notes
                yield sample
    except (pa.ArrowException, OSError) as error:
        yield Skip(str(plan.path), "", "unreadable manifest", f"after row {number}: {error}"[:300], 0)


def _sample(
    plan: Plan, key: str, number: int, row: Row, folder: Source, inside: Source, textual: bool, notes: list[Skip]
) -> Sample:
    values = [text for name in plan.captions for text in many(_listed(row.get(name)) if textual else row.get(name))]
    captions, dropped = clean_captions(values)
    notes += [Skip(str(plan.path), key, bad.reason + KEPT, bad.detail, 0) for bad in dropped]
    label = -1
    try:
        label = label_of(row.get(plan.label))
    except Unusable as unusable:
        notes.append(Skip(str(plan.path), key, unusable.reason + KEPT, unusable.detail, 0))
    extra = {name: scalar(_number(row.get(name)) if textual else row.get(name)) for name in plan.extra}

    image = row.get(plan.image)
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        if len(image) > MAX_IMAGE:
            raise Unusable("image file too large", f"{len(image)} bytes")
        return Sample(key, inside, number, "", image, captions, label, extra)
    if not image:
        raise Unusable("missing image")
    if not isinstance(image, str):
        raise Unusable("missing image", f"column {plan.image!r} holds a {type(image).__name__}, no path and no bytes")
    path = path_below(plan.root, image)
    return Sample(key, folder, -1, path, read_image(plan.root, path), captions, label, extra)


def _columns(path: Path) -> list[str]:
    try:
        match path.suffix.lower():
            case ".parquet":
                return list(pq.read_schema(path).names)
            case ".jsonl":
                return jsonl_columns(path)
            case _:
                return csv_columns(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a manifest: {error}"[:400]) from None


def _rows(plan: Plan) -> Iterator[tuple[int, Row | Unusable]]:
    match plan.path.suffix.lower():
        case ".parquet":
            return parquet_rows(plan.path, plan.wanted)
        case ".jsonl":
            return jsonl_rows(plan.path)
        case _:
            return csv_rows(plan.path, plan.wanted)


def _chosen(path: Path, columns: list[str], what: str, given: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
    if absent := [name for name in given if name not in columns]:
        raise UserError(f"{path} has no column {absent[0]!r}; it has {', '.join(columns)}"[:400])
    found = tuple(given) or ((name,) if (name := _named(columns, usual)) else ())
    if not found:
        raise UserError(f"{path}: which column is the {what}? It has {', '.join(columns)}; name it"[:400])
    return found


def _named(columns: list[str], usual: Sequence[str]) -> str:
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in usual if name in lower), "")


def _key(value: object, otherwise: str) -> str:
    key = value if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    return key if key and is_unicode(key) else otherwise


def _listed(cell: object) -> object:
    """A CSV cell that is a JSON list of strings (Flickr30k's annotations) as that list."""
    if not isinstance(cell, str) or not cell.startswith('["'):
        return cell
    try:
        texts = json.loads(cell)
    except ValueError:
        return cell
    return texts if all(isinstance(text, str) for text in texts) else cell


def _number(cell: Any) -> Any:
    """A CSV cell as the number that is written exactly so, else the text."""
    for kind in (int, float):
        try:
            if str(kind(cell)) == cell:
                return kind(cell)
        except (TypeError, ValueError):
            continue
    return cell
