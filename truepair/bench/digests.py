"""Short digests of what cells are trained and measured on: by them the same data are known again, anywhere."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from truepair.bench.cells import names_of_sets
from truepair.bench.grid import Grid
from truepair.errors import UserError
from truepair.pairs.table import PairTable

if TYPE_CHECKING:
    from truepair.evaluate.classes import ImageClasses

DIGITS = 16  # hexadecimal, of SHA-256


def of_table(table: PairTable) -> str:
    """Digest of a table's images and of the captions in force, row by row."""
    captions = table.captions()
    found = hashlib.sha256(table.strings("sha").blob.tobytes())
    for part in (captions.strings.blob, captions.strings.ends, captions.ends):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:DIGITS]


def of_classes(images: "ImageClasses") -> str:
    """Digest of class names, templates, labels and image files, in their order. Reads every image."""
    found = hashlib.sha256(json.dumps([images.class_names, images.templates]).encode())
    found.update(np.ascontiguousarray(images.labels).tobytes())
    for number in range(len(images)):
        found.update(hashlib.sha256(images.read(number)).digest())
    return found.hexdigest()[:DIGITS]


def of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


def of_sets(grid: Grid, corpus: Path) -> dict[str, str]:
    """The digest of every held-out table and class folder, by the name of its setting.

    Raises UserError naming the held-out set if one cannot be opened.
    """
    from truepair.evaluate.classes import ImageClasses  # loads torch

    found = []
    for one in grid.evaluate:
        for what, path in one.paths.items():
            where = corpus / path
            try:
                classes = what == "zeroshot"
                found.append(of_classes(ImageClasses.open(where)) if classes else of_table(PairTable.open(where)))
            except UserError as error:
                raise UserError(f"grid {grid.name}: held-out set {one.name!r}, {what}: {error}") from None
    return dict(zip(names_of_sets(grid), found, strict=True))
