"""Pairs of Karpathy's JSON splits of COCO, Flickr8k and Flickr30k: five sentences an image."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truepair.errors import UserError
from truepair.pairs.sources.sample import (
    KEPT,
    Options,
    Sample,
    Scalar,
    Skip,
    Unusable,
    clean_captions,
    path_below,
    read_image,
)
from truepair.pairs.table import Source

COLUMNS = ("split", "imgid")


def read_karpathy(path: Path, options: Options, prefix: str = "") -> Iterator[Sample | Skip]:
    """Every entry of `images`: captions from sentences[].raw, the file at filepath/filename below the root.

    The root is `options.root`, else the JSON's folder. Gives the columns `split` (train, restval, val, test) and
    `imgid`. Key = `prefix` + file name without its suffix.

    Raises:
        UserError: the file is no JSON of that form.
    """
    images = _images(path)
    source = Source(str((options.root or path.parent).absolute()), "folder")
    for number, entry in enumerate(images):
        key = f"{prefix}{number:09d}"
        try:
            name, folder = entry["filename"], entry.get("filepath") or ""
            key = prefix + os.path.splitext(os.path.basename(name))[0]
            below = path_below(source.path, os.path.join(folder, name))
            captions, dropped = clean_captions(entry["sentences"])
            image = read_image(source.path, below)
        except Unusable as unusable:
            yield Skip(str(path), key, unusable.reason, unusable.detail)
        except (KeyError, TypeError, AttributeError) as error:
            yield Skip(str(path), key, "unreadable json", f"images[{number}]: {error!r}")
        else:
            yield from (Skip(str(path), key, bad.reason + KEPT, bad.detail, 0) for bad in dropped)
            split, imgid = entry.get("split"), entry.get("imgid")
            extra: dict[str, Scalar] = {
                "split": split if isinstance(split, str) else "",
                "imgid": imgid if type(imgid) is int else -1,
            }
            yield Sample(key, source, -1, below, image, captions, -1, extra)


def _images(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
        images = content["images"]
        if not isinstance(images, list) or not images or "sentences" not in images[0]:
            raise KeyError("images[].sentences")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = "Karpathy's form {images: [{filename, sentences: [{raw}], split}]}"
        raise UserError(f"{path} is no JSON of {what}: {error!r}"[:400]) from None
    return images
