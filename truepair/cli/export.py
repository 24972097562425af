"""The verb that hands a trained model on: `export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console
from truepair.cli.settings import Flag
from truepair.errors import UserError


@dataclass
class Export:
    """Write a run's model as an open_clip local-dir (safetensors), which open_clip loads without truepair.

    Examples:
      truepair export run --out model
    """

    run: tyro.conf.Positional[Path]  # directory of a run
    out: Path  # directory of the local-dir
    json: Flag = False  # print one JSON object as the last line


def export(args: Export) -> dict[str, Any]:
    from safetensors import SafetensorError

    from truepair.models import open_model, save_local_dir

    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} exists and is not empty; choose another --out")
    model = open_model(str(args.run))
    partial = args.out.with_name(f".{args.out.name}.partial")
    try:
        save_local_dir(model, partial)
    except SafetensorError as error:
        raise UserError(f"{args.out} cannot be written: {error}") from None
    if args.out.exists():
        args.out.rmdir()
    partial.rename(args.out)
    console.print(f'{args.out}: open_clip.create_model_and_transforms("local-dir:{args.out}")')
    return {"out": str(args.out), "parameters": sum(p.numel() for p in model.parameters())}
