"""The verb that shows what runs did: `report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console
from truepair.cli.settings import Flag
from truepair.errors import UserError


@dataclass
class Report:
    """Write one page about a run, or one that compares several: curves, noise model, doubted pairs, searches.

    Examples:
      truepair report run
      truepair report runs/clip runs/gate --out compared.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]  # directories of runs, finished or not
    out: Path | None = None  # the page; default: RUN/report.html of a single run
    title: str = ""  # of the page
    worst: int = 24  # most doubted pairs to show of each run
    json: Flag = False  # print one JSON object as the last line


def report(args: Report) -> dict[str, Any]:
    from truepair.report import run_report

    if not args.runs:
        raise UserError("say which runs to report on: truepair report RUN [RUN ...]")
    if args.worst < 0:
        raise UserError(f"--worst {args.worst} makes no sense; 0 shows none")
    if args.out is None and len(args.runs) > 1:
        raise UserError("several runs share no directory; say where the page goes: --out compared.html")
    page = run_report(args.runs, args.out or args.runs[0] / "report.html", title=args.title, worst=args.worst)
    console.print(f"page: {page}")
    return {"page": str(page), "runs": [str(run) for run in args.runs]}
