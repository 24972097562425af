"""The verb `caption`: synthetic captions by a run's own captioner or an external one, as a column of a new table."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from truepair.cli.output import console, counting, first_rank
from truepair.cli.settings import Flag, checked_batch_size, checked_workers
from truepair.errors import UserError


@dataclass
class Caption:
    """Let a captioner write captions for the images of a pair table, beside those it has.

    A run of --method nlip has a captioner of its own, which also says how well captions fit; hf: takes any other.

    Killed at any moment, the same command goes on. Several GPUs: torchrun --nproc-per-node N -m truepair caption ...

    Examples:
      truepair caption table --model run --accept better --out captioned
      truepair caption table --model hf:Salesforce/blip2-opt-2.7b --out captioned
      truepair caption table --model hf:captioner-folder --n 3 --min-p-noise 0.5 --out captioned
      truepair caption table --model hf:captioner-folder --judge run --accept better --out captioned
      truepair train --data captioned --pairs.synthetic synthetic --pairs.captions 2 --out run
    """

    table: tyro.conf.Positional[Path]  # a pair table
    model: str  # a run with a captioner (its newest checkpoint); or hf:NAME or hf:DIR, an image-to-text model
    out: Path  # directory of the new table
    name: str = "synthetic"  # the new column
    n: int = 1  # captions an image; equal ones are kept once
    decoding: Literal["nucleus", "beam", "greedy"] = "nucleus"
    top_p: float = 0.9  # nucleus: the likeliest tokens that together have this probability
    temperature: float = 1.0  # nucleus: of the logits
    beams: int = 5  # beam: how many
    min_tokens: int = -1  # -1: 5 for hf:, 1 for a run, which knows how long captions are; no more than max_tokens
    max_tokens: int = 30
    prompt: str = ""  # hf: what captions go on from, or the question to a model that chats
    min_p_noise: float = 0.0  # only pairs that column p_noise calls at least so noisy; the others get no caption
    accept: Literal["all", "better"] = "all"  # better: no less similar to the image than the best raw caption
    margin: float = 0.0  # better by so much [logits, cosine times 1/temperature; 2: seven times as likely]
    judge: str = ""  # RUN, open_clip:NAME:TAG or local-dir:DIR, to compare captions with images; a run does it itself
    seed: int = 0
    overwrite: Flag = False  # replace the table's column of this name
    batch_size: int = 32
    workers: int = -1  # decoding processes a rank; -1: by the number of cores
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 on a GPU, fp32 on a CPU
    json: Flag = False  # print one JSON object as the last line


def caption(args: Caption) -> dict[str, Any]:
    from truepair.annotate.caption import LOG, caption_table
    from truepair.models.image_to_text import Decoding
    from truepair.models.likeness import Judge
    from truepair.pairs.table import PairTable
    from truepair.train.devices import ranks

    decoding = Decoding(
        *(args.decoding, args.n, args.top_p, args.temperature, args.beams),
        _min_tokens(args),
        args.max_tokens,
    )
    batch_size, workers = checked_batch_size(args.batch_size), checked_workers(args.workers)
    table = PairTable.open(args.table)
    with ranks(args.device) as device:
        captioner = _captioner(args, device)
        judge = Judge(_towers(args.judge).to(device), args.precision) if args.judge else None
        with counting("captioning", len(table)) as advance:
            result = caption_table(
                table,
                captioner,
                args.out,
                name=args.name,
                decoding=decoding,
                min_p_noise=args.min_p_noise,
                accept=args.accept,
                margin=args.margin,
                judge=judge,
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
    if result.judged:
        console.print(
            f"  at least as similar to the image as the raw caption: {result.better:,} of {result.judged:,}; "
            f"captions rejected: {result.rejected:,}"
        )
    for reason, count in result.skipped.items():
        console.print(f"  without caption {count:,}: {reason} (named in {args.out / LOG})")
    return dataclasses.asdict(result)


def _min_tokens(args: Caption) -> int:
    if args.min_tokens != -1:
        return args.min_tokens
    usual = 5 if args.model.startswith("hf:") else 1
    return max(min(usual, args.max_tokens), 0)


def _captioner(args: Caption, device: Any) -> Any:
    from truepair.models.image_to_text import SCHEME, open_captioner
    from truepair.models.run_captioner import open_run_captioner

    if args.model.startswith(SCHEME):
        return open_captioner(args.model, device=device, precision=args.precision, prompt=args.prompt)
    if args.prompt:
        raise UserError("a run's captioner reads concepts, not text; leave out --prompt")
    return open_run_captioner(args.model, device=device, precision=args.precision)


def _towers(name: str) -> Any:
    from truepair.models.dual import open_model

    if name.startswith("open_clip:") and name.count(":") < 2:
        raise UserError(f"--judge {name} has no weights, it would judge at random; name some: {name}:TAG")
    return open_model(name)
