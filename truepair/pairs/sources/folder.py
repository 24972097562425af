"""Pairs of a folder of images: captions from sidecar text files, or from the names of the sub-folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from truepair.pairs.sources.discover import image_files
from truepair.pairs.sources.sample import (
    KEPT,
    MAX_TEXT,
    Sample,
    Skip,
    Unusable,
    clean_captions,
    path_below,
    read_image,
)
from truepair.pairs.table import Source


def read_folder(folder: Path, prefix: str = "") -> Iterator[Sample | Skip]:
    """Every image below `folder`, directories and names sorted; key = `prefix` + path without its suffix.

    NAME.txt beside an image holds its captions, one a line. In a sub-folder without a single sidecar the caption is
    the sub-folder's name, underscores as spaces, and the label its place among all such names, sorted.
    """
    source = Source(str(folder.absolute()), "folder")
    classes = sorted({name for below, images, names in image_files(folder) if (name := _class(below, images, names))})
    place = {name: label for label, name in enumerate(classes)}
    for below, images, names in image_files(folder):
        name = _class(below, images, names)
        for image in images:
            path = os.path.normpath(os.path.join(below, image))
            stem = os.path.splitext(path)[0]
            key = prefix + stem
            try:
                path_below(source.path, path)
                values = [name.replace("_", " ")] if name else _lines(folder / f"{stem}.txt")
                captions, dropped = clean_captions(values)
                label = place[name] if name else -1
                sample = Sample(key, source, -1, path, read_image(source.path, path), captions, label)
            except Unusable as unusable:
                yield Skip(source.path, key, unusable.reason, unusable.detail)
            else:
                yield from (Skip(source.path, key, bad.reason + KEPT, bad.detail, 0) for bad in dropped)
                yield sample


def _class(below: str, images: list[str], names: set[str]) -> str:
    """The class that a directory stands for: its own name, or "" for the source itself and where sidecars are."""
    sidecars = any(os.path.splitext(image)[0] + ".txt" in names for image in images)
    return "" if below == "." or sidecars else os.path.basename(below)


def _lines(sidecar: Path) -> list[object]:
    """The lines of a text file that are not blank, as bytes; [b""] if all are."""
    try:
        if sidecar.stat().st_size > MAX_TEXT:
            raise Unusable("caption too long", f"{sidecar.stat().st_size} bytes")
        lines = sidecar.read_bytes().splitlines()
    except OSError as error:
        raise Unusable("missing caption", str(error)) from None
    return [line for line in lines if line.strip()] or [b""]
