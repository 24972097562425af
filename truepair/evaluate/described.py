"""Images with the captions people gave them, from a pair table or COCO's files, and candidates for them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from truepair.errors import UserError
from truepair.pairs.columns import StringLists, Strings
from truepair.pairs.table import PairTable

ImageId = int | str
COCO_NAME = re.compile(r"(?:COCO_\w+_)?0*(\d{1,18})")
NO_REFERENCE, NO_CANDIDATE, STRANGE = "no reference", "no candidate", "candidate of no image here"


@dataclass(frozen=True)
class Described:
    """n distinct images, each with at least one reference.

    ids: COCO's image ids: the number in which a row's key ends, if it is COCO's file name or digits, else the key.
    references: of each image. table, rows: where its bytes are, the first of its rows; None and empty for JSON.
    image_of_row: (N,) image of each row of the table, -1: none. skipped: reason -> images left out.
    """

    name: str
    ids: list[ImageId]
    references: list[list[str]]
    skipped: dict[str, int]
    table: PairTable | None = None
    column: str = ""  # of the table, with the references
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    image_of_row: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def number_of(self) -> dict[ImageId, int]:
        """The image of each id. Raises UserError if two images share one."""
        numbers = {image: number for number, image in enumerate(self.ids)}
        if len(numbers) < len(self):
            twice = next(image for number, image in enumerate(self.ids) if numbers[image] != number)
            raise UserError(f"{self.name}: several images have the id {twice!r}; COCO's result files need one for each")
        return numbers


def image_id(name: object) -> ImageId:
    """COCO's number of "COCO_val2014_000000391895", of "000000391895" and of 391895; other names as they are."""
    found = COCO_NAME.fullmatch(name) if isinstance(name, str) else None
    return int(found[1]) if found else name if isinstance(name, int) else str(name)


def described_table(table: PairTable, references: str = "") -> Described:
    """The distinct images of a table with the captions in force, or of column `references`, of all their rows.

    Raises UserError if there is no such column, or no image with a caption.
    """
    column = references or table.caption_column
    group = table.groups("sha")
    _, first, image_of_row = np.unique(group, return_index=True, return_inverse=True)
    captions: list[list[str]] = [[] for _ in first]
    for image, texts in zip(image_of_row.tolist(), _texts(table, column), strict=True):
        captions[image] += filter(str.strip, texts)
    used = np.array([bool(texts) for texts in captions], bool)
    if not used.any():
        raise UserError(f"{table.path} has no captions in {column!r}, so there is nothing to compare with")
    number = np.where(used, np.cumsum(used) - 1, -1)
    keys = table.strings("key")
    return Described(
        name=table.path.name,
        ids=[image_id(keys[row]) for row in first[used].tolist()],
        references=[texts for texts in captions if texts],
        skipped=_without_reference(len(first) - int(used.sum())),
        table=table,
        column=column,
        rows=first[used],
        image_of_row=number[image_of_row],
    )


def described_json(path: Path) -> Described:
    """The images of COCO's caption annotations {images, annotations}, or of Karpathy's JSON {images: [{sentences}]}.

    Raises UserError if the file is neither, or no image has a caption.
    """
    content = _json(path)
    references: dict[ImageId, list[str]] = {}
    try:
        images = content["images"]
        if "annotations" in content:
            references = {image_id(image["id"]): [] for image in images}
            for entry in content["annotations"]:
                references.setdefault(image_id(entry["image_id"]), []).append(_text(entry["caption"]))
        else:
            for image in images:
                name = image["cocoid"] if "cocoid" in image else Path(image["filename"]).stem
                references.setdefault(image_id(name), []).extend(_text(said["raw"]) for said in image["sentences"])
    except (KeyError, TypeError, AttributeError) as error:
        forms = "COCO's {images: [{id}], annotations: [{image_id, caption}]} or Karpathy's {images: [{sentences}]}"
        raise UserError(f"{path} is no JSON of {forms}: {error!r}"[:400]) from None
    captions = {image: list(filter(None, texts)) for image, texts in references.items()}
    kept = {image: texts for image, texts in captions.items() if texts}
    if not kept:
        raise UserError(f"{path} has no captions, so there is nothing to compare with")
    return Described(path.name, list(kept), list(kept.values()), _without_reference(len(captions) - len(kept)))


@dataclass(frozen=True)
class Candidates:
    """One caption for each of n images, None where there is none. by: who wrote them. skipped: reason -> how many."""

    by: str
    texts: list[str | None]
    skipped: dict[str, int]


def candidates_in_column(images: Described, column: str) -> Candidates:
    """The first caption that column `column` of the table has for each image: None where all its rows' lists are empty.

    A caption that is an empty string is one, as a captioner's that writes nothing.
    Raises UserError if there is no such column, or if it holds the references themselves.
    """
    if images.table is None:
        raise UserError(f"{images.name} has no columns; --candidates must be COCO's result JSON, not {column!r}")
    if column == images.column:
        raise UserError(f"column {column!r} would be compared with itself; say which --references to use")
    found: list[str | None] = [None] * len(images)
    for image, texts in zip(images.image_of_row.tolist(), _texts(images.table, column), strict=True):
        if image >= 0 and texts and found[image] is None:
            found[image] = texts[0]
    return Candidates(column, found, _lacking(found))


def candidates_in_file(images: Described, path: Path) -> Candidates:
    """The captions of COCO's result JSON [{image_id, caption}].

    Raises UserError if the file is none, gives an image two captions, or fits no image.
    """
    number = images.number_of()
    found: list[str | None] = [None] * len(images)
    content, strange = _json(path), 0
    try:
        given = [(image_id(entry["image_id"]), _text(entry["caption"])) for entry in content]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO result JSON [{{image_id, caption}}]: {error!r}"[:400]) from None
    for image, caption in given:
        if image not in number:
            strange += 1
        elif found[number[image]] is not None:
            raise UserError(f"{path} has two captions for image {image!r}, where one is scored")
        else:
            found[number[image]] = caption
    if strange == len(given):
        theirs = f"its first is {given[0][0]!r}" if given else "it is empty"
        raise UserError(f"{path} has no caption for images like {images.ids[0]!r} of {images.name}; {theirs}")
    return Candidates(path.name, found, _lacking(found) | ({STRANGE: strange} if strange else {}))


def write_results(path: Path, images: Described, candidates: Candidates) -> None:
    """COCO's result JSON [{image_id, caption}] of the images that have a candidate, whole or not at all.

    Raises UserError if two images share an id, or the file cannot be written.
    """
    images.number_of()
    entries = [
        {"image_id": image, "caption": text}
        for image, text in zip(images.ids, candidates.texts, strict=True)
        if text is not None
    ]
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(entries, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _without_reference(count: int) -> dict[str, int]:
    return {NO_REFERENCE: count} if count else {}


def _lacking(texts: Sequence[str | None]) -> dict[str, int]:
    count = sum(text is None for text in texts)
    return {NO_CANDIDATE: count} if count else {}


def _texts(table: PairTable, name: str) -> list[list[str]]:
    """The captions of every row, of a column of strings or of lists of strings."""
    column = table.column(name)
    if isinstance(column, StringLists):
        return [column[row] for row in range(len(column))]
    if isinstance(column, Strings):
        return [[column[row]] for row in range(len(column))]
    raise UserError(f"column {name!r} of {table.path} does not hold captions")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"caption {value!r} is no text")
    return value.strip()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error!r}"[:400]) from None
