"""The verbs that make a pair table: from nothing, from sources, from another table with noise put in."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from truepair.cli.output import console
from truepair.cli.settings import Flag
from truepair.errors import UserError

MOST_REASONS = 8  # why pictures were left out, the frequent ones


@dataclass
class Data:
    """Make a demo corpus as ready pair tables: OUT/train and OUT/test, and a zero-shot set, OUT/zeroshot.

    emoji and icons are artwork from npm, openclipart is drawings with their public titles from Debian, scenes are
    drawn here. Of icons five whole sets are held out: OUT/test/SET and OUT/zeroshot/SET. openclipart has no classes.

    Examples:
      truepair data emoji --out emoji
      truepair data icons --out icons
      truepair data openclipart --out clipart --from openclipart-png.deb openclipart-svg.deb
      truepair data scenes --n 500 --out scenes
    """

    corpus: tyro.conf.Positional[Literal["emoji", "icons", "openclipart", "scenes"]]  # what to make
    out: Path  # directory of the new tables
    n: int = 2000  # scenes: training pairs
    seed: int = 0
    size: int = 64  # pixels
    debs: Annotated[  # openclipart: the two Debian packages, where there is no apt-get to fetch them
        tuple[Path, ...], tyro.conf.arg(name="from", metavar="FILE.deb ...")
    ] = ()
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Index:
    """Index tars, manifests, image folders or Karpathy JSON into a pair table; nothing is unpacked or copied.

    Examples:
      truepair index "shards/{00000..00120}.tar" --out table
      truepair index pairs.parquet --image-column path --caption-columns title alt --out table
    """

    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="SOURCE...", help="files or directories; globs and {000..120} expand"),
    ]
    out: Path  # directory of the new table
    caption_field: str = ""  # tars: the field of KEY.json with the caption(s), instead of KEY.txt
    caption_columns: tuple[str, ...] = ()  # manifests: column(s) of captions, if their names do not tell
    image_column: str = ""  # manifests: column of image paths or bytes
    extra_columns: tuple[str, ...] = ()  # further fields or columns to keep
    root: Path | None = None  # folder that image paths of manifests and Karpathy JSONs are below
    verify: Flag = False  # decode every image in full
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Corrupt:
    """Inject noise whose truth is known into the captions of a pair table; images stay where they are.

    Examples:
      truepair corrupt table --kind shuffle --rate 0.4 --out noisy
    """

    table: tyro.conf.Positional[Path]  # a pair table
    out: Path  # directory of the new table
    kind: Literal["shuffle", "near", "truncate", "boilerplate", "foreign"] = "shuffle"
    rate: float = 0.4  # share of the pairs
    seed: int = 0
    json: Flag = False  # print one JSON object as the last line


def data(args: Data) -> dict[str, Any]:
    from truepair.pairs.corpora.tables import make_tables

    if args.debs and args.corpus != "openclipart":
        raise UserError(f"--from names the packages of openclipart, not of {args.corpus}")
    with _drawn() as progress:
        made = make_tables(
            args.corpus, args.out, n=args.n, seed=args.seed, size=args.size, debs=args.debs, progress=progress
        )
    console.print(f"{made.train:,} pairs in {args.out / 'train'}, {made.test:,} in {args.out / 'test'}")
    for part in made.held_out:
        console.print(f"  {part.name}: {part.pairs:,} pairs, {part.classes:,} zero-shot classes")
    if made.classes:
        console.print(f"{made.classes:,} classes in {args.out / 'zeroshot'} (CLIP_benchmark's layout)")
    if made.skipped:
        console.print(f"{len(made.skipped):,} pictures left out, each named with its reason in {args.out}/corpus.json")
    for reason, count in Counter(skipped.reason.split(": ")[0] for skipped in made.skipped).most_common(MOST_REASONS):
        console.print(f"  {count:,}: {reason}")
    if made.styles:
        console.print(f"licences of the {len(made.styles)} sets: {args.out / 'LICENSES.md'}")
    held_out = {part.name: {"test": part.pairs, "classes": part.classes} for part in made.held_out}
    result = {"train": made.train, "test": made.test, "classes": made.classes, "skipped": len(made.skipped)}
    return result | ({"held_out": held_out} if held_out else {}) | {"seconds": made.seconds}


@contextmanager
def _drawn() -> Iterator[Callable[[int, int], None]]:
    """A bar of the pictures drawn, with the time left; yields what is to be told how many of how many there are."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("drawing"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("drawing", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def index(args: Index) -> dict[str, Any]:
    from truepair.pairs.index import index

    if not args.sources:
        raise UserError("say what to index: truepair index SOURCE... --out TABLE")
    with console.status("indexing") as status:
        summary = index(
            args.sources,
            args.out,
            caption_field=args.caption_field,
            caption_columns=args.caption_columns,
            image_column=args.image_column,
            extra_columns=args.extra_columns,
            root=args.root,
            verify=args.verify,
            progress=lambda pairs: status.update(f"indexing: {pairs:,} pairs"),
        )
    rate = summary.members / max(summary.seconds, 1e-9)
    console.print(f"{summary.rows:,} pairs in {args.out} ({summary.seconds:.1f} s, {rate:,.0f} members/s)")
    for reason, count in summary.skipped.items():
        console.print(f"  skipped {count:,}: {reason} (named in {args.out / 'skipped.jsonl'})")
    return dataclasses.asdict(summary)


def corrupt(args: Corrupt) -> dict[str, Any]:
    from truepair.noise.tables import corrupt_table
    from truepair.pairs.table import PairTable

    made = corrupt_table(PairTable.open(args.table), args.out, args.kind, args.rate, args.seed)
    console.print(
        f"{made.rows:,} pairs in {made.table}: noise nominal {made.nominal:.2%}, effective {made.effective:.2%} "
        f"(captions in column {made.caption_column}, truth in is_noise)"
    )
    return dataclasses.asdict(made)
