"""`truepair index`: sources of any kind become a pair table; their images stay where they are."""

import errno
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from truepair.errors import UserError
from truepair.pairs.header import image_size
from truepair.pairs.image import MAX_PIXELS, ImageError
from truepair.pairs.sources import karpathy
from truepair.pairs.sources.discover import Found, discover
from truepair.pairs.sources.folder import read_folder
from truepair.pairs.sources.manifest import Plan, plan_manifest, read_manifest
from truepair.pairs.sources.sample import Options, Sample, Skip
from truepair.pairs.sources.shards import read_tar
from truepair.pairs.table import PAIRS, SCHEMA, PairTable, Source
from truepair.pairs.writing import LABEL, TableWriter

PROGRESS_PAIRS = 1_000

_COLUMN = re.compile(r"[A-Za-z_][\w.-]*")
_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


@dataclass(frozen=True)
class IndexSummary:
    """What an index run did. Reasons in `skipped` that end in "(pair kept)" cost a part of a pair, not the pair."""

    rows: int
    skipped: dict[str, int]  # reason -> count, most frequent first
    members: int  # tar members, files or manifest rows read
    seconds: float
    table: Path


def index(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    caption_field: str = "",
    caption_columns: Sequence[str] = (),
    image_column: str = "",
    extra_columns: Sequence[str] = (),
    root: str | Path | None = None,
    verify: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> IndexSummary:
    """Index `sources` into a new pair table in the directory `out`.

    Rows stand in the order of the sources as given, files of a pattern or folder sorted by name. What cannot be used
    is left out with a named reason: a line in `out`/skipped.jsonl each, a count in the summary.

    Args:
        sources: tars, manifests (parquet, csv, tsv, jsonl), Karpathy JSONs, folders; globs and `{000..120}` expand.
        out: a directory that does not exist, is empty, or holds nothing but the sources themselves.
        caption_field: tars: the field of KEY.json with the caption or captions.
        caption_columns, image_column: manifests: the columns, where their usual names do not tell.
        extra_columns: fields of KEY.json or columns of a manifest to keep as columns, numbers or text.
        root: manifests and Karpathy JSONs: the folder that image paths are below (default: the file's own).
        verify: decode every image in full, to find damage that header and last bytes do not show.
        max_pixels: larger images are left out as "bomb-sized image".
        progress: called with the number of pairs seen so far, now and then.

    Raises:
        UserError: a source that is none, `out` in use, no usable pair at all, or no room to write.
    """
    began = time.perf_counter()
    out = Path(out)
    options = Options(
        caption_field, tuple(caption_columns), image_column, tuple(extra_columns), Path(root) if root else None
    )
    found = discover(sources)
    _check_columns(extra_columns)
    _check_out(out, found)
    readers = _readers(found, options)
    names = [*extra_columns, *(karpathy.COLUMNS if any(f.kind == "karpathy" for f in found) else ())]
    try:
        staging = _staging(out)
        try:
            with TableWriter(staging, list(dict.fromkeys(names))) as writer:
                _fill(writer, readers, verify, max_pixels, progress)
                numbered = writer.finish()
            counts = dict(writer.skipped.most_common())
            if not writer.rows:
                raise UserError(f"no usable pair in {_named(sources)}: {_counted(counts) or 'there is nothing in it'}")
            _save(staging, out, numbered, sources, options)
            _move_into_place(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno in _FULL_OR_FORBIDDEN:
            raise UserError(f"cannot write the table {out}: {error.strerror}") from None
        raise
    return IndexSummary(writer.rows, counts, writer.members, time.perf_counter() - began, out)


def _fill(
    writer: TableWriter,
    readers: Sequence[Iterator[Sample | Skip]],
    verify: bool,
    max_pixels: int,
    progress: Callable[[int], None] | None,
) -> None:
    seen = 0
    for reader in readers:
        for item in reader:
            if isinstance(item, Skip):
                writer.skip(item)
                continue
            seen += 1
            if progress and seen % PROGRESS_PAIRS == 0:
                progress(seen)
            try:
                width, height = image_size(item.image, verify=verify, max_pixels=max_pixels)
            except ImageError as error:
                writer.skip(Skip(item.source.path, item.key, error.reason, error.detail, item.members))
            else:
                writer.add(item, width, height, sha256(item.image).hexdigest()[:32])
    if progress:
        progress(seen)


def _readers(found: Sequence[Found], options: Options) -> list[Iterator[Sample | Skip]]:
    """A reader per source; manifests are opened once now, so that a wrong column is said before the long work.

    Keys that only number or name things inside one source get the source's name in front where there are several.
    """
    plans: dict[Path, Plan] = {f.path: plan_manifest(f.path, options) for f in found if f.kind == "manifest"}
    for name in options.extra_columns:
        if plans and len(plans) == len(found) and not any(name in plan.extra for plan in plans.values()):
            raise UserError(f"no manifest has a column {name!r} (asked for as an extra column)")
    times: Counter[str] = Counter()
    readers: list[Iterator[Sample | Skip]] = []
    for source in found:
        name = source.path.absolute().name if source.kind == "folder" else source.path.stem
        times[name] += 1
        prefix = name + (f"~{times[name]}" if times[name] > 1 else "")
        match source.kind:
            case "tar":
                readers.append(read_tar(source.path, options))
            case "manifest":
                readers.append(read_manifest(plans[source.path], f"{prefix}/"))
            case "folder":
                readers.append(read_folder(source.path, f"{prefix}/" if len(found) > 1 else ""))
            case "karpathy":
                readers.append(karpathy.read_karpathy(source.path, options, f"{prefix}/" if len(found) > 1 else ""))
    return readers


def _check_columns(names: Sequence[str]) -> None:
    for name in names:
        if not _COLUMN.fullmatch(name) or name in SCHEMA.names or name == LABEL:
            raise UserError(f"{name!r} cannot be the name of an extra column (letters, digits, _ . -; not the index's)")


def _check_out(out: Path, found: Sequence[Found]) -> None:
    """Refuse an `out` in use; beside its own sources a table may be written (a corpus with shards/ in it)."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    holds_sources = out.is_dir() and any(source.path.absolute().is_relative_to(out.absolute()) for source in found)
    if not holds_sources or (out / "table.json").exists():
        raise UserError(f"{out} exists and is not empty; choose another --out or remove it")


def _staging(out: Path) -> Path:
    """A fresh hidden folder on the file system of `out`: inside it if it holds the sources, else beside it."""
    parent = out if out.exists() and any(out.iterdir()) else out.absolute().parent
    staging = parent / f".{out.absolute().name}.partial-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def _save(
    staging: Path, out: Path, numbered: Sequence[Source], sources: Sequence[str | Path], options: Options
) -> None:
    """Write table.json: sources below `out` by relative path, so that the folder can be moved as a whole."""
    here = str(out.absolute()).rstrip("/") + "/"
    kept = [
        Source(os.path.relpath(s.path, here) if s.path.startswith(here) else s.path, s.kind, s.column) for s in numbered
    ]
    made = {"by": "index", "sources": [str(source) for source in sources]}
    table = PairTable(staging, kept, made={name.stem: made for name in sorted((staging / "columns").iterdir())})
    if options.caption_field:
        made["caption_field"] = options.caption_field
    table.made["caption"] = made
    table.save()


def _move_into_place(staging: Path, out: Path) -> None:
    """Rename the finished table to its final name; beside its sources file by file, table.json last."""
    if staging.parent != out:
        staging.replace(out)
        return
    for name in ("skipped.jsonl", "columns", PAIRS, "table.json"):
        target = out / name
        if target.is_dir():
            shutil.rmtree(target)
        (staging / name).replace(target)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _named(sources: Sequence[str | Path]) -> str:
    return ", ".join(map(str, sources[:3])) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
