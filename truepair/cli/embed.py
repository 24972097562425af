"""The verb `embed`: feature columns of a table, by frozen encoders."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from truepair.cli.output import console, counting, first_rank
from truepair.cli.settings import Flag, checked_batch_size, checked_workers
from truepair.errors import UserError


@dataclass
class Embed:
    """Add feature columns to a pair table: what frozen encoders see in its images and read in its captions.

    Killed at any moment, the same command goes on. Several GPUs: torchrun --nproc-per-node N -m truepair embed ...

    Examples:
      truepair embed table --model open_clip:ViT-B-16:openai --regions grid --out embedded
      truepair embed embedded --model sentence-transformers:all-MiniLM-L6-v2 --out guided
    """

    table: tyro.conf.Positional[Path]
    model: str  # RUN, open_clip:NAME:TAG, local-dir:DIR, timm:NAME[:FILE], timm:DIR or sentence-transformers:DIR
    out: Path  # directory of the new table
    name: str = ""  # columns are NAME_image and NAME_text; default: from the model's name
    what: Literal["auto", "both", "image", "text"] = "auto"  # auto: what the model can encode
    regions: Literal["pooled", "grid", "boxes"] = "pooled"  # the whole image; and G x G crops; and a detector's boxes
    grid: int = 3  # G of --regions grid
    boxes: str = ""  # column of lists of boxes [x0, y0, x1, y1], in fractions of the image
    captions: str = ""  # column of lists of captions or tags, instead of the captions in force
    overwrite: Flag = False  # replace columns that TABLE has already (in the new table only)
    batch_size: int = 0  # images, or crops of images, at once; 0: by the device
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


def embed(args: Embed) -> dict[str, Any]:
    from truepair.annotate.embed import embed_table, silent
    from truepair.annotate.regions import regions_of
    from truepair.models.encoders import ImageEncoder, TextEncoder, open_encoder
    from truepair.pairs.table import PairTable
    from truepair.train.devices import ranks

    batch_size = args.batch_size and checked_batch_size(args.batch_size)
    workers = checked_workers(args.workers)
    table = PairTable.open(args.table)
    regions = regions_of(table, args.regions, grid=args.grid, boxes=args.boxes)
    with ranks(args.device) as device:
        encoder = open_encoder(args.model).to(device)
        image = encoder if isinstance(encoder, ImageEncoder) and args.what != "text" else None
        text = encoder if isinstance(encoder, TextEncoder) and args.what != "image" else None
        for wanted, found in (("image", image), ("text", text)):
            if found is None and args.what in ("both", wanted):
                raise UserError(f"model {args.model!r} cannot encode {wanted}s; see --what")
        if image is None and args.regions != "pooled":
            raise UserError(f"--regions {args.regions} is for images, which are not to be encoded")
        if text is None and args.captions:
            raise UserError(f"--captions {args.captions} is for texts, which are not to be encoded")
        result = embed_table(
            table,
            args.out,
            args.name or named_after(args.model),
            image=image,
            text=text,
            regions=regions,
            captions=args.captions,
            overwrite=args.overwrite,
            batch_size=batch_size,
            workers=workers,
            counting=counting if first_rank() else silent,
        )
    if first_rank():
        for column, shape in result.columns.items():
            console.print(f"{column}: {' x '.join(f'{size:,}' for size in shape)} float16")
        rate = result.embedded / max(result.seconds, 1e-9)
        console.print(f"{args.out}: {result.embedded:,} rows embedded ({result.seconds:.1f} s, {rate:,.0f} rows/s)")
        for reason, count in result.skipped.items():
            console.print(f"  {count:,} rows: {reason} (named in {args.out / 'skipped-embed.jsonl'})")
    return dataclasses.asdict(result)


def named_after(model: str) -> str:
    """A column's name from a model's: the architecture, or the last folder."""
    scheme, colon, rest = model.partition(":")
    if scheme in ("open_clip", "timm") and not Path(rest).exists():
        rest = rest.partition(":")[0]
    last = Path(rest if colon else model).absolute().name
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-")
    return clean if clean[:1].isalpha() else f"model-{clean}".rstrip("-")
