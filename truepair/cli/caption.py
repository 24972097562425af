"""The verb `caption`: synthetic captions by an external captioner, as a column of a new table."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from truepair.cli.output import console, counting, first_rank
from truepair.cli.settings import Flag, checked_batch_size, checked_workers


@dataclass
class Caption:
    """Let an image-to-text model write captions for the images of a pair table, beside those it has.

    Killed at any moment, the same command goes on. Several GPUs: torchrun --nproc-per-node N -m truepair caption ...

    Examples:
      truepair caption table --model hf:Salesforce/blip2-opt-2.7b --out captioned
      truepair caption table --model hf:captioner-folder --n 3 --min-p-noise 0.5 --out captioned
      truepair train --data captioned --pairs.synthetic synthetic --pairs.captions 2 --out run
    """

    table: tyro.conf.Positional[Path]  # a pair table
    model: str  # hf:NAME or hf:DIR, any image-to-text model of transformers
    out: Path  # directory of the new table
    name: str = "synthetic"  # the new column
    n: int = 1  # captions an image; equal ones are kept once
    decoding: Literal["nucleus", "beam", "greedy"] = "nucleus"
    top_p: float = 0.9  # nucleus: the likeliest tokens that together have this probability
    temperature: float = 1.0  # nucleus: of the logits
    beams: int = 5  # beam: how many
    min_tokens: int = 5
    max_tokens: int = 30
    prompt: str = ""  # what captions go on from, or the question to a model that chats
    min_p_noise: float = 0.0  # only pairs that column p_noise calls at least so noisy; the others get no caption
    seed: int = 0
    overwrite: Flag = False  # replace the table's column of this name
    batch_size: int = 32
    workers: int = -1  # decoding processes a rank; -1: by the number of cores
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 on a GPU, fp32 on a CPU
    json: Flag = False  # print one JSON object as the last line


def caption(args: Caption) -> dict[str, Any]:
    from truepair.annotate.caption import LOG, caption_table
    from truepair.models.image_to_text import Decoding, open_captioner
    from truepair.pairs.table import PairTable
    from truepair.train.devices import ranks

    decoding = Decoding(
        args.decoding, args.n, args.top_p, args.temperature, args.beams, args.min_tokens, args.max_tokens
    )
    batch_size, workers = checked_batch_size(args.batch_size), checked_workers(args.workers)
    table = PairTable.open(args.table)
    with ranks(args.device) as device:
        captioner = open_captioner(args.model, device=device, precision=args.precision, prompt=args.prompt)
        with counting("captioning", len(table)) as advance:
            result = caption_table(
                table,
                captioner,
                args.out,
                name=args.name,
                decoding=decoding,
                min_p_noise=args.min_p_noise,
                seed=args.seed,
                batch_size=batch_size,
                workers=workers,
                overwrite=args.overwrite,
                progress=advance if first_rank() else None,
            )
    if result is None:
        return {}
    console.print(
        f"{result.captions:,} captions for {result.rows:,} of {result.looked_at:,} images, "
        f"in column {result.column} of {result.table}"
    )
    for reason, count in result.skipped.items():
        console.print(f"  without caption {count:,}: {reason} (named in {args.out / LOG})")
    return dataclasses.asdict(result)
