"""What every source yields: a pair with its image bytes, or a named reason why there is none."""

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truepair.pairs.table import Source

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION = 65_536  # characters; a longer text is a document, no tower reads a hundredth of it
MAX_TEXT = 16 << 20  # bytes of a .txt or .json file that are read at all
MAX_IMAGE = 1 << 28  # bytes of an image file that are read at all
KEPT = " (pair kept)"  # ends the name of a reason that costs less than the pair
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:|data:")

Scalar = str | int | float | None


@dataclass(frozen=True)
class Options:
    """How to read sources: which fields hold captions and images, what else to keep, where paths start."""

    caption_field: str = ""  # tar: the field of KEY.json with the caption(s)
    caption_columns: tuple[str, ...] = ()  # manifest
    image_column: str = ""  # manifest
    extra_columns: tuple[str, ...] = ()  # fields of KEY.json or columns of a manifest that become columns
    root: Path | None = None  # manifest, Karpathy: the folder that paths are below


@dataclass(slots=True)
class Sample:
    """A pair as read: image bytes and where they lie, captions (at least one), and what else the source says."""

    key: str
    source: Source
    offset: int
    path: str
    image: bytes
    captions: list[str]
    label: int = -1
    extra: dict[str, Scalar] = field(default_factory=dict)
    members: int = 1  # files or manifest rows read for it


@dataclass(slots=True)
class Skip:
    """A line of skipped.jsonl. A reason that ends in `KEPT` is about a part; the pair itself follows."""

    source: str
    key: str
    reason: str
    detail: str = ""
    members: int = 1


class Unusable(Exception):
    """A pair cannot be used; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def clean_captions(values: Iterable[object]) -> tuple[list[str], list[Unusable]]:
    """The usable captions among `values` (text or UTF-8 bytes), stripped, NUL as space; and why the others are not.

    Raises:
        Unusable: none is usable: "missing caption", "empty caption", "caption is not UTF-8", "caption is not text"
            or "caption too long" (over 65,536 characters).
    """
    captions: list[str] = []
    dropped: list[Unusable] = []
    for value in values:
        try:
            captions.append(_clean(value))
        except Unusable as unusable:
            dropped.append(unusable)
    if not captions:
        raise dropped[0] if dropped else Unusable("missing caption")
    return captions, dropped


def _clean(value: object) -> str:
    if value is None:
        raise Unusable("missing caption")
    if isinstance(value, dict):
        value = value.get("raw")  # Karpathy's sentences
    if isinstance(value, bytes):
        if len(value) > 4 * MAX_CAPTION:
            raise Unusable("caption too long", f"{len(value)} bytes")
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unusable("caption is not UTF-8", str(error)) from None
    if not isinstance(value, str):
        raise Unusable("caption is not text", type(value).__name__)
    if not is_unicode(value):
        raise Unusable("caption is not UTF-8", "half of a surrogate pair")
    text = value.replace("\0", " ").strip()
    if not text:
        raise Unusable("empty caption")
    if len(text) > MAX_CAPTION:
        raise Unusable("caption too long", f"{len(text)} characters")
    return text


def is_unicode(text: str) -> bool:
    """Whether `text` can be stored as UTF-8 (JSON escapes and file names may hold half of a surrogate pair)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def many(value: object) -> list[object]:
    """A caption field as a list: lists stay, one text is a list of one, nothing is an empty list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def scalar(value: object) -> Scalar:
    """`value` if it can stand in a column (text or a finite-size number), else None."""
    if isinstance(value, str):
        return value if is_unicode(value) else None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value) if abs(value) < 2**1000 else None
    return value if isinstance(value, float) else None


def label_of(value: object) -> int:
    """A class label as an integer; -1 for none. Raises Unusable "unreadable label"."""
    if value is None or value == "":
        return -1
    try:
        label = int(value) if isinstance(value, str | bytes | int) else None
    except ValueError:
        label = None
    if label is None or not -(2**63) <= label < 2**63:
        raise Unusable("unreadable label", repr(value)[:100])
    return label


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises Unusable "unreadable json"."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unusable("unreadable json", str(error)[:200]) from None
    if not isinstance(value, dict):
        raise Unusable("unreadable json", f"a {type(value).__name__}, not an object")
    return value


def path_below(root: str, text: str) -> str:
    """`text`, absolute or relative to the absolute folder `root`, as a path relative to `root`.

    Raises Unusable: "remote path", "file name is not UTF-8", "path outside root".
    """
    if REMOTE.match(text):
        raise Unusable("remote path", text[:200])
    if not is_unicode(text):
        raise Unusable("file name is not UTF-8", ascii(text)[:200])
    base = root.rstrip("/") + "/"
    joined = os.path.normpath(os.path.join(base, text))
    if not joined.startswith(base):
        raise Unusable("path outside root", f"{text[:200]!r} is not below {root}; set root to a folder above it")
    return joined[len(base) :]


def read_image(root: str, path: str) -> bytes:
    """The bytes of the image file `path` below `root`. Raises Unusable: "missing file", "image file too large"."""
    try:
        with open(os.path.join(root, path), "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("missing file", f"{path} is not a regular file")
            if status.st_size > MAX_IMAGE:
                raise Unusable("image file too large", f"{status.st_size} bytes")
            return file.readall()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise Unusable("missing file", str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe must not hang the index
