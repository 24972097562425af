"""The verb `concepts`: the things in a table's images, as names of a vocabulary."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from truepair.cli.output import console, counting, first_rank
from truepair.cli.settings import Flag, checked_batch_size, checked_workers
from truepair.errors import UserError


@dataclass
class Concepts:
    """Add concept columns to a pair table: for each image, the names a model finds nearest to it.

    The names are the most frequent nouns and noun phrases of the table's captions (English), or those of a list.
    Killed at any moment, the same command goes on. Several GPUs: torchrun --nproc-per-node N -m truepair concepts ...

    Examples:
      truepair concepts table --model open_clip:ViT-B-16:openai --out named
      truepair concepts table --model runs/clip --list things.txt --k 5 --out named
    """

    table: tyro.conf.Positional[Path]
    model: str  # RUN, open_clip:NAME:TAG or local-dir:DIR
    out: Path  # directory of the new table
    name: str = "concepts"  # columns are NAME and NAME_score
    list: str = ""  # file of concepts, one a line, in place of the captions' nouns
    k: int = 10  # concepts of an image
    most: int = 10_000  # nouns and phrases at most, the most frequent
    least: int = 2  # captions that must hold a noun or phrase
    captions: str = ""  # column of captions to find nouns in, instead of the captions in force
    features: str = ""  # column of image features that `truepair embed` made with the same model, to encode no image
    search: Literal["torch", "faiss"] = "torch"  # both exact; faiss on the CPU, from truepair[faiss]
    overwrite: Flag = False  # replace columns that TABLE has already (in the new table only)
    batch_size: int = 0  # images at once; 0: by the device
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


def concepts(args: Concepts) -> dict[str, Any]:
    from truepair.annotate.concepts import add_concepts
    from truepair.annotate.embed import silent
    from truepair.models.encoders import TextEncoder, open_encoder
    from truepair.pairs.table import PairTable
    from truepair.train.devices import ranks

    batch_size = args.batch_size and checked_batch_size(args.batch_size)
    workers = checked_workers(args.workers)
    table = PairTable.open(args.table)
    names, source = _vocabulary(args, table)
    with ranks(args.device) as device:
        encoder = open_encoder(args.model).to(device)
        if not isinstance(encoder, TextEncoder):
            raise UserError(
                f"model {args.model!r} cannot encode texts; take a RUN, open_clip:NAME:TAG or local-dir:DIR"
            )
        result = add_concepts(
            table,
            args.out,
            names,
            encoder,
            name=args.name,
            k=args.k,
            features=args.features,
            source=source,
            search=args.search,
            overwrite=args.overwrite,
            batch_size=batch_size,
            workers=workers,
            counting=counting if first_rank() else silent,
        )
    if first_rank():
        some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        console.print(f"{result.concepts:,} concepts ({source}): {some}")
        for column, shape in result.columns.items():
            console.print(f"{column}: {' x '.join(f'{size:,}' for size in shape)}")
        rate = result.compared / max(result.seconds, 1e-9)
        console.print(f"{args.out}: {result.compared:,} images named ({result.seconds:.1f} s, {rate:,.0f} images/s)")
        for reason, count in result.skipped.items():
            console.print(f"  {count:,} rows: {reason} (named in {args.out / 'skipped-concepts.jsonl'})")
    return dataclasses.asdict(result)


def _vocabulary(args: Concepts, table: Any) -> tuple[Any, str]:
    """The concepts' names, and where they come from in words."""
    from truepair.models.concepts import read_concepts
    from truepair.pairs.nouns import frequent_concepts

    if args.list:
        return read_concepts(args.list), f"of {Path(args.list).name}"
    if args.most < 1 or args.least < 1:
        raise UserError("--most and --least are numbers of 1 or more")
    names = frequent_concepts(table.captions(args.captions), most=args.most, least=args.least)
    column = args.captions or table.caption_column
    if not names:
        raise UserError(
            f"no English noun is in {args.least} captions of column {column!r}; write concepts one a line, and name "
            "the file with --list"
        )
    return names, f"nouns of column {column!r}"
