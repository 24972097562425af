"""The verb that shows the whole of it: `demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truepair.cli.output import console
from truepair.cli.settings import Flag


@dataclass
class Demo:
    """Make a noisy corpus, train CLIP and a robust method on it, compare them on artwork by an unseen artist.

    Examples:
      truepair demo --out demo
    """

    out: Path = Path("demo")  # directory for the corpus, the runs and report.html
    seed: int = 0
    corpus: Literal["emoji", "scenes"] = "emoji"  # scenes need no download; emoji fall back to them offline
    json: Flag = False  # print one JSON object as the last line


def demo(args: Demo) -> dict[str, Any]:
    from truepair.demo import run_demo, table_of

    result = run_demo(args.out, seed=args.seed, corpus=args.corpus, console=console)
    console.print(table_of(result))
    console.print(f"report: {args.out / 'report.html'}")
    return result
