"""A corpus on disk: pairs in img2dataset's tars, a zero-shot set as CLIP_benchmark reads it, a note of it all."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from truepair.errors import UserError

CONTENTS = ("train", "test", "zeroshot")
NOTE = "corpus.json"


@dataclass(frozen=True)
class Pair:
    """One picture with its texts. `key` names the tar members: no slash, no dot (WebDataset cuts at the first)."""

    key: str
    image: bytes  # an encoded PNG
    captions: tuple[str, ...]  # distinct, best first
    label: int = -1  # index of the zero-shot class, -1 for none
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of KEY.json


@dataclass(frozen=True)
class StyleNote:
    """Where one artist's pictures come from, and how many pairs they gave."""

    name: str
    package: str
    version: str
    author: str
    licence: str
    url: str
    pairs: int


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class HeldOut:
    """One of several test tables, `test/NAME`: its pairs, and the classes of `zeroshot/NAME`."""

    name: str
    pairs: int
    classes: int


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus holds (pairs to train on, held-out pairs, zero-shot classes, sources), what it lacks, its time.

    With several test tables, `test` and `classes` are their sums.
    """

    train: int
    test: int
    classes: int
    styles: tuple[StyleNote, ...]
    skipped: tuple[Skipped, ...]
    seconds: float
    held_out: tuple[HeldOut, ...] = ()


def write_shards(pairs: Iterable[Pair], folder: Path, per_shard: int = 1000) -> list[Path]:
    """Write pairs as WebDataset tars `folder/00000.tar`, ... with KEY.png, KEY.txt (first caption) and KEY.json.

    The bytes depend on the pairs alone (no times, no owners). A shard appears under its name only when whole.
    Raises UserError if `folder` already holds shards, ValueError on an unusable or repeated key or missing captions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} already holds shards: remove them or choose another folder")
    seen: set[str] = set()
    paths = []
    for number, shard in enumerate(_chunks(pairs, per_shard)):
        members: list[tuple[str, bytes]] = []
        for pair in shard:
            _check(pair, seen)
            note = {
                "caption": pair.captions[0],
                "captions": list(pair.captions),
                "label": pair.label,
                **pair.extra,
                "key": pair.key,
            }
            members += [
                (f"{pair.key}.png", pair.image),
                (f"{pair.key}.txt", pair.captions[0].encode()),
                (f"{pair.key}.json", json.dumps(note, ensure_ascii=False).encode()),
            ]
        paths.append(_write_tar(folder / f"{number:05d}.tar", members))
    return paths


def write_zeroshot(
    pairs: Iterable[Pair], classnames: Sequence[str], templates: Sequence[str], folder: Path, per_shard: int = 1000
) -> list[Path]:
    """Write labelled pairs in CLIP_benchmark's WebDataset layout: class names, templates with `{c}`, `test/0.tar`, ...

    Raises ValueError on a label that names no class, a template without `{c}`, or a class name with a line break.
    """
    if any("{c}" not in template for template in templates):
        raise ValueError("every zero-shot template needs {c} where the class name goes")
    if any(len(line.splitlines()) != 1 for line in (*classnames, *templates)):
        raise ValueError("class names and templates take one non-empty line each")
    test = folder / "test"
    test.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    paths = []
    for number, shard in enumerate(_chunks(pairs, per_shard)):
        members: list[tuple[str, bytes]] = []
        for pair in shard:
            _check(pair, seen)
            if not 0 <= pair.label < len(classnames):
                raise ValueError(f"pair {pair.key!r}: label {pair.label} names none of {len(classnames)} classes")
            members += [(f"{pair.key}.png", pair.image), (f"{pair.key}.cls", str(pair.label).encode())]
        paths.append(_write_tar(test / f"{number}.tar", members))
    (test / "nshards.txt").write_text(f"{len(paths)}\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classnames), encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "".join(f"{t}\n" for t in templates), encoding="utf-8"
    )
    return paths


@contextmanager
def staged(out: Path, identity: str) -> Iterator[Path]:
    """A hidden folder inside `out` whose contents take their final names when the block succeeds, `corpus.json` last.

    `identity` says what made the corpus; leave it to `write_note`, which must be called inside the block. If another
    process has finished the same corpus there in the meantime, it stays as it is.
    Raises UserError if `out` is no folder or holds another corpus, before the block or after it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the corpus")
    _refuse_taken(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".partial-{identity}-") as temporary:
        stage = Path(temporary)
        yield stage
        if read_note(out, identity) is None:
            _refuse_taken(out)
            for child in sorted(stage.iterdir(), key=lambda path: path.name == NOTE):
                os.replace(child, out / child.name)


def _refuse_taken(out: Path) -> None:
    if taken := [name for name in (*CONTENTS, NOTE) if (out / name).exists()]:
        raise UserError(f"{out} already holds another corpus ({', '.join(taken)}): remove it or choose another folder")


def write_note(folder: Path, summary: CorpusSummary, identity: str) -> None:
    """Write `corpus.json`: the summary and the identity that lets a later call recognise the same corpus."""
    note = {"identity": identity, **asdict(summary)}
    (folder / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_note(folder: Path, identity: str) -> CorpusSummary | None:
    """The summary of the finished corpus in `folder` if it has this identity, else None."""
    path = folder / NOTE
    if not path.is_file():
        return None
    note = json.loads(path.read_text(encoding="utf-8"))
    if note.pop("identity", None) != identity:
        return None
    note["styles"] = tuple(StyleNote(**style) for style in note["styles"])
    note["skipped"] = tuple(Skipped(**skipped) for skipped in note["skipped"])
    note["held_out"] = tuple(HeldOut(**part) for part in note.get("held_out", ()))
    return CorpusSummary(**note)


def _chunks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    remaining = iter(pairs)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _check(pair: Pair, seen: set[str]) -> None:
    if not pair.key or "." in pair.key or "/" in pair.key:
        raise ValueError(f"pair key {pair.key!r} must be a plain name without dot or slash")
    if pair.key in seen:
        raise ValueError(f"pair key {pair.key!r} is given twice")
    if not pair.captions:
        raise ValueError(f"pair {pair.key!r} has no caption")
    seen.add(pair.key)


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)  # time, owner and group stay 0 and empty
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
