"""The run page: what one or several runs learned, what they came to think of the pairs, and how right they were."""

from collections.abc import Sequence
from pathlib import Path

from truepair.config import to_toml
from truepair.errors import UserError
from truepair.report.changed import changed
from truepair.report.completion import completion
from truepair.report.curves import detection, learning
from truepair.report.doubt import doubt
from truepair.report.found import searches
from truepair.report.multiples import mixtures
from truepair.report.record import labels, read_run
from truepair.report.render import render, write_page
from truepair.report.summary import differences, glossary, headings, lead, rows
from truepair.report.svg import RUNS


def run_report(runs: Sequence[Path], out: Path, *, title: str = "", worst: int = 24) -> Path:
    """Write one self-contained HTML page that compares `runs` (run directories, finished or not) and return its path.

    worst: most doubted pairs to show of each run. The page is written whole or not at all, asks nothing of a network,
    and is the same for the same runs. Raises UserError if there is no run to show.
    """
    if not runs:
        raise UserError("there is no run to report on; name at least one run directory")
    if out.is_dir():
        raise UserError(f"{out} is a directory; name the HTML file to write")
    records = [read_run(Path(run)) for run in runs]
    methods = [record.config.method for record in records]
    names = labels(records)
    ends = names if len(names) > 1 else [""]  # one run's curves need no names
    page = render(
        "run.html",
        title=title or f"What the run{'s' * (len(runs) > 1)} found: {', '.join(dict.fromkeys(methods))}",
        lead=lead(records),
        head=headings(records),
        glossary=glossary(records),
        rows=rows(records, names),
        measured=any(record.evals for record in records),
        learning=learning(records, ends),
        detection=detection(records, ends),
        opined=any(record.splits for record in records),
        searches=searches(records, names),
        doubts=[doubt(record, name, i, worst) for i, (record, name) in enumerate(zip(records, names, strict=True))],
        mixtures=list(map(mixtures, records, names)),
        changes=list(map(changed, records, names)),
        completions=list(filter(None, map(completion, records, names, range(len(records))))),
        differences=differences(records),
        configs=[(name, to_toml(record.config)) for record, name in zip(records, names, strict=True)],
        notes=list(dict.fromkeys((name, note) for of, name in zip(records, names, strict=True) for note in of.notes)),
        labels=names,
        colours=len(RUNS),
    )
    write_page(out, page)
    return out
