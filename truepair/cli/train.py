"""The verb `train`, whose flags are those of a run's configuration and of the method that is named."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from truepair.cli.output import console, first_rank
from truepair.cli.parsing import parsed
from truepair.cli.settings import Flag
from truepair.config import RunConfig, filled, from_toml

flat = tyro.conf.arg(name="")  # flags of such a field carry no prefix


@dataclass
class TrainFlags:
    """How the configuration above is used."""

    config: Path | None = None  # a TOML recipe; flags override it
    resume: Flag = False  # go on from the newest checkpoint in --out, with the run's own configuration
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Train:
    """Train two towers on a pair table, by any of the methods; on one CPU or many GPUs.

    Examples:
      truepair train --data table --out run --method gate --epochs 10
      truepair train --data table --out run --resume
      torchrun --nproc-per-node 8 -m truepair train --data table --out run --model ViT-B-32 --batch-size 4096

    --batch-size is that of all GPUs together. The options shown are those of --method.
    """

    run: Annotated[RunConfig, flat]
    options: Any  # of the method; its own dataclass takes this place when the method is known
    more: Annotated[TrainFlags, flat]

    @property
    def json(self) -> bool:
        return self.more.json


def parse_train(argv: Sequence[str]) -> Train:
    """The flags of `train`: a recipe's or a resumed run's configuration below, what is on the command line above."""
    from truepair.methods import method_class

    resumed = Path(_value_of("--out", argv)) / "run.toml" if "--resume" in argv else None
    base = RunConfig()
    if given := _value_of("--config", argv):
        base = from_toml(given)
    elif resumed and resumed.exists():
        base = from_toml(resumed)
    method = _value_of("--method", argv) or base.method
    kind = method_class(method).Options
    options = filled(kind, base.options if method == base.method else {}, f"method {method}")
    base.method = method

    chosen: Any = dataclasses.make_dataclass("Train", [("options", kind)], bases=(Train,))
    args: Train = parsed(chosen, "train", argv, about=Train.__doc__, default=chosen(base, options, TrainFlags()))
    return args


def train(args: Train) -> dict[str, Any]:
    from truepair.report import run_report
    from truepair.train import train

    config = dataclasses.replace(args.run, options=dataclasses.asdict(args.options))
    result = train(config, resume=args.more.resume)
    if first_rank():
        page = run_report([result.run], result.run / "report.html")
        console.print(f"{result.step:,} of {result.steps:,} steps done; page: {page}")
    return dataclasses.asdict(result)


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The value of a flag among raw arguments, "" if it is not there."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""
