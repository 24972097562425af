"""From what the user typed (files, folders, globs, braces) to a list of sources of known kind."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from truepair.errors import UserError
from truepair.pairs.sources.sample import IMAGE_SUFFIXES, REMOTE

Kind = Literal["tar", "manifest", "folder", "karpathy"]

KINDS: dict[str, Kind] = {
    ".tar": "tar",
    ".parquet": "manifest",
    ".csv": "manifest",
    ".tsv": "manifest",
    ".jsonl": "manifest",
    ".json": "karpathy",
}
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


@dataclass(frozen=True)
class Found:
    """One source to read: a tar, a manifest, a folder of images, or a Karpathy JSON."""

    kind: Kind
    path: Path


def discover(sources: Sequence[str | Path]) -> list[Found]:
    """Every file or folder meant by `sources`, in the order given, files of one pattern or folder sorted by name.

    A folder means its tars, else its `metadata.csv|jsonl|parquet`, else its images, else its manifests.

    Raises:
        UserError: a source does not exist, is remote, holds nothing to index, or is of no known kind.
    """
    return [found for source in sources for path in _paths(str(source)) for found in _kinds(path)]


def expand_braces(pattern: str) -> list[str]:
    """`a-{008..010}.tar` and `{train,val}.csv` written out, leading zeros kept, leftmost brace slowest."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        numbers = range(int(first), int(last) + 1)
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in numbers]
    else:
        choices = words.split(",")
    rest = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in rest]


def _paths(source: str) -> list[Path]:
    if REMOTE.match(source):
        raise UserError(f"{source} is remote; copy it to a local disk first (images are read in place)")
    if os.path.lexists(source):
        return [Path(source)]
    paths: list[Path] = []
    for pattern in expand_braces(source):
        if os.path.lexists(pattern):
            paths.append(Path(pattern))
        elif matches := sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []:
            paths += map(Path, matches)
        else:
            raise UserError(f"no such source: {pattern}" + (f" (from {source})" if pattern != source else ""))
    if not paths:
        raise UserError(f"no such source: {source} (the range is empty)")
    return paths


def _kinds(path: Path) -> list[Found]:
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise UserError(f"{path} cannot be read (a broken link, or no regular file)")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        hint = "unpack it first: images are read in place" if path.suffix in (".gz", ".zst", ".tgz") else ""
        raise UserError(f"{path} is of no known kind ({', '.join(KINDS)} or a folder){hint and '; ' + hint}")
    return [Found(kind, path)]


def _in_folder(folder: Path) -> list[Found]:
    if (folder / "table.json").is_file():
        raise UserError(f"{folder} is a pair table already; give the sources it was made from")
    if tars := _sorted(folder.glob("*.tar")) or _sorted(folder.rglob("*.tar")):
        return [Found("tar", path) for path in tars]
    if metadata := [path for s in ("csv", "jsonl", "parquet") if (path := folder / f"metadata.{s}").is_file()]:
        return [Found("manifest", metadata[0])]
    if next(image_files(folder), None):
        return [Found("folder", folder)]
    if parquets := _sorted(folder.rglob("*.parquet")):
        return [Found("manifest", path) for path in parquets]
    if others := _sorted(chain(*(folder.glob(f"*.{suffix}") for suffix in ("csv", "tsv", "jsonl")))):
        return [Found("manifest", path) for path in others]
    raise UserError(f"{folder} holds no tars, no manifests (parquet, csv, tsv, jsonl) and no images")


def _sorted(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith(".") and path.is_file())


def image_files(folder: Path) -> Iterator[tuple[str, list[str], set[str]]]:
    """(path below `folder`, sorted image names, all file names) of every directory that has images, itself as ".".

    Hidden files and directories are passed over, links to directories not followed.
    """
    for directory, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        images = [name for name in names if suffix_of(name) in IMAGE_SUFFIXES and not name.startswith(".")]
        if images:
            yield os.path.relpath(directory, folder), sorted(images), set(names)


def suffix_of(name: str) -> str:
    """Lower-cased part of a file name after its last dot."""
    return name.rpartition(".")[2].lower()
