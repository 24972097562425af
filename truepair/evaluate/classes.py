"""Reads labelled test images: CLIP_benchmark's WebDataset folders, or a folder of images a class."""

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from truepair.errors import UserError
from truepair.evaluate.features import Read, Skipped

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
LONGEST_LABEL = 32  # bytes of a .cls member
LONGEST_COUNT = 18  # digits of nshards.txt
LARGEST_IMAGE = 1 << 28  # bytes of an image member
DEFAULT_TEMPLATES = ("a photo of a {c}.",)
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageClasses:
    """n images with a class each, and how to say the classes in words.

    labels: (n,) int64 in [0, len(class_names)).
    templates: sentences in which "{c}" or "{}" stands for the class name.
    read: gives the file bytes of image i.
    skipped: (position in the data, reason) of samples without a usable label or image member.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    read: Read
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def open(cls, path: str | Path, *, split: str = "test") -> "ImageClasses":
        """Open a directory in one of two layouts.

        CLIP_benchmark's WebDataset: `classnames.txt`, `zeroshot_classification_templates.txt`, and in the folder
        `split` the shards `0.tar` ... counted by `nshards.txt` (all `*.tar` if it is missing).
        Image folder: a sub-folder a class, in sorted order (by value where all names are numbers); `classnames.txt`
        and the templates file are optional. The 1,000 ImageNet folders (WordNet ids, or 0 to 999) get open_clip's names
        and templates; other folders are named by themselves, underscores read as spaces.

        Raises UserError where neither fits or a part is missing.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(
                f"{path} is not a folder; give a CLIP_benchmark WebDataset folder or a folder of class folders"
            )
        if (path / split / "nshards.txt").is_file() or any((path / split).glob("*.tar")):
            return _webdataset(path, split)
        return _image_folder(path)


def _webdataset(path: Path, split: str) -> ImageClasses:
    kind = path / "dataset_type.txt"
    if (found := " ".join(_lines(kind))) not in ("", "classification"):
        raise UserError(
            f"{path} is of type {found[:40]!r} ({kind.name}); zero-shot classification needs one label an image"
        )
    names = _lines(path / NAMES)
    if not names:
        raise UserError(f"{path / NAMES} is missing or empty; it holds one class name a line")
    members: list[tuple[Path, int, int]] = []  # shard, offset, size of the image bytes
    labels: list[int] = []
    skipped: list[Skipped] = []
    position = 0
    for shard in _shards(path / split):
        for image, label in _samples(shard):
            if image is None:
                skipped.append((position, "missing or oversized image"))
            elif label is None:
                skipped.append((position, "missing or unreadable label"))
            elif not 0 <= label < len(names):
                skipped.append((position, "label outside classnames.txt"))
            else:
                members.append((shard, *image))
                labels.append(label)
            position += 1
    if not members:
        raise UserError(
            f"{path / split} holds no sample with an image and a .cls label; see docs/evaluation.md for the layout"
        )
    read = partial(_read_member, members)
    templates = _templates(path) or DEFAULT_TEMPLATES
    return ImageClasses(path.name, names, templates, np.array(labels, np.int64), read, tuple(skipped))


def _shards(folder: Path) -> list[Path]:
    count = folder / "nshards.txt"
    if not count.is_file():
        return sorted(folder.glob("*.tar"), key=lambda shard: (len(shard.stem), shard.stem))
    text = " ".join(_lines(count))
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_COUNT):
        raise UserError(f"{count} must hold the number of shards, it holds {text[:40]!r}")
    shards: list[Path] = []
    for i in range(int(text)):
        shard = folder / f"{i}.tar"
        if not shard.is_file():
            raise UserError(f"{shard} is missing; {count} promises {text} shards")
        shards.append(shard)
    return shards


def _samples(shard: Path) -> list[tuple[tuple[int, int] | None, int | None]]:
    """(offset and size of the image, label) of every key, in order; a key ends at the first dot of the base name."""
    samples: dict[str, tuple[tuple[int, int] | None, int | None]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key, extension = f"{folder}/{stem}", extension.lower()
                if not member.isreg() or not (extension in IMAGES or extension == "cls"):
                    continue
                image, label = samples.get(key, (None, None))
                if extension == "cls":
                    label = _label(tar, member)
                elif member.size <= LARGEST_IMAGE:
                    image = image or (member.offset_data, member.size)
                samples[key] = (image, label)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard} is not a readable tar: {error}; fetch or write it again") from None
    return list(samples.values())


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int | None:
    file = tar.extractfile(member)
    text = b"" if file is None or member.size > LONGEST_LABEL else file.read().strip()
    return int(text) if text.isdigit() else None


def _read_member(members: Sequence[tuple[Path, int, int]], index: int) -> bytes:
    shard, offset, size = members[index]
    with shard.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"{shard} gave {len(data)} bytes of {size}")
    return data


def _image_folder(path: Path) -> ImageClasses:
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    numbered = all(folder.name.isascii() and folder.name.isdigit() for folder in folders)
    folders.sort(key=lambda folder: (int(folder.name), folder.name) if numbered else (0, folder.name))
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.rglob("*") if file.suffix[1:].lower() in IMAGES and file.is_file())
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(
            f"{path} holds neither shards (test/0.tar) nor class folders with images; see docs/evaluation.md"
        )
    names, templates = _names(path, [folder.name for folder in folders])
    read = partial(_read_file, files)
    return ImageClasses(path.name, names, _templates(path) or templates, np.array(labels, np.int64), read)


def _read_file(files: Sequence[Path], index: int) -> bytes:
    return files[index].read_bytes()


def _names(path: Path, folders: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and templates of an image folder whose sub-folders are `folders`, in order."""
    if names := _lines(path / NAMES):
        if len(names) != len(folders):
            raise UserError(
                f"{path / NAMES} names {len(names)} classes, {path} has {len(folders)} sub-folders; give one line each"
            )
        return names, DEFAULT_TEMPLATES
    wordnet = all(WNID.fullmatch(folder) for folder in folders)
    if len(folders) == 1000 and (wordnet or folders == [str(i) for i in range(1000)]):
        import open_clip

        templates = tuple(template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
        return tuple(open_clip.IMAGENET_CLASSNAMES), templates
    if wordnet:
        raise UserError(
            f"{path} has {len(folders)} of ImageNet's 1000 WordNet folders; name them in {path / NAMES}, one a line"
        )
    return tuple(folder.replace("_", " ") for folder in folders), DEFAULT_TEMPLATES


def _templates(path: Path) -> tuple[str, ...]:
    templates = _lines(path / TEMPLATES)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise UserError(f"{path / TEMPLATES}: {template[:80]!r} has no {{c}} where the class name goes")
    return templates


def _lines(file: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank at its end, stripped; () if there is no such file."""
    if not file.is_file():
        return ()
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from None
