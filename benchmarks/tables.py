"""Writes the tables of README.md, docs and dated pages from results.json files of `truepair bench`, never by hand.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # exit 1, naming the place, if a table is not what its file says

A table stands between two comments, and whatever is between them is replaced:

    <!-- truepair bench: benchmarks/results/emoji-cpu/results.json score rates=0,0.4 rows="clip;gate" -->
    <!-- end -->

First the file, from the repository's root; then what: `score` (the grid's own figure) or another figure by name (top5,
text_to_image_r1, ...), `detection`, `cost`, or `page`: all of table.md but its title. Scores take rates=0,0.4 and
rows="clip;never, no split", which leave all others out. A table without what was asked for is an error, and so is a
page of PAGES_WITH_TABLES that has none.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truepair.bench.grid import FIGURES
from truepair.bench.results import page as page_of
from truepair.bench.summary import columns, cost_table, detection_table, lines, score, score_table

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/choose.md",
    "benchmarks/results/2026-12-01-emoji-cpu.md",
    "benchmarks/results/2026-12-01-natural.md",
)
PAGES_WITH_TABLES = PAGES  # those of PAGES that must have a table
MARKER = "<!-- truepair bench:"
PLACE = re.compile(
    r"(?P<open><!-- truepair bench: (?P<words>[^\n]*?) -->\n).*?(?P<close>^<!-- end -->)", re.DOTALL | re.M
)


def table(words: str, root: Path) -> list[str]:
    """The table that a marker comment asks for. Raises ValueError, saying what is wrong with it."""
    file, what, *more = [*shlex.split(words), "", ""][: max(2, len(shlex.split(words)))]
    if not what or "=" in what:
        raise ValueError(f"say which table before {what!r}: score, detection, cost, page or a figure")
    try:
        results = json.loads((root / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    chosen = dict(word.partition("=")[::2] for word in more)
    if unknown := chosen.keys() - {"rates", "rows"}:
        raise ValueError(f"{unknown.pop()!r} is not known; rates=A,B and rows=A;B are")
    if what in ("detection", "cost", "page"):
        if chosen:
            raise ValueError(f"{what} is always whole; {min(chosen)} is for scores")
        made = {"detection": detection_table, "cost": cost_table, "page": untitled}[what](results)
    elif what == "score" or what in FIGURES:
        made = scores(results, "" if what == "score" else what, chosen)
    else:
        raise ValueError(f"{what!r} is no table; choose score, detection, cost, page, {', '.join(FIGURES)}")
    if len(made) < 3:
        raise ValueError(f"{file} has no figures for {words!r}")
    return made


def untitled(results: Mapping[str, Any]) -> list[str]:
    """All of table.md below its title."""
    return "\n".join(page_of(results)[2:]).strip().split("\n")


def scores(results: Mapping[str, Any], figure: str, chosen: Mapping[str, str]) -> list[str]:
    """A table of scores with the chosen rates and rows. Raises ValueError if one of them has no figure in it."""
    rates = [float(rate) for rate in chosen.get("rates", "").split(",") if rate]
    rows = [name for name in chosen.get("rows", "").split(";") if name]
    shown = [column for column in columns(results) if not rates or column.rate in rates]
    found = [line for line in lines(results, score(results, figure), shown) if not rows or line.name in rows]
    known = {column.rate for place, column in enumerate(shown) if any(line.cells[place] for line in found)}
    if missing := [f"{rate:g}" for rate in rates if rate not in known]:
        raise ValueError(f"there are no figures at rate {', '.join(missing)}")
    if missing := [name for name in rows if name not in {line.name for line in found}]:
        raise ValueError(f"there are no figures of the row {'; '.join(missing)}")
    return score_table(results, figure=figure, rates=rates, rows=rows)


def filled(text: str, root: Path = ROOT) -> str:
    """A page with its tables made anew. Raises ValueError for a marker that cannot be followed or is not closed."""
    if text.count(MARKER) != len(PLACE.findall(text)):
        raise ValueError("a marker <!-- truepair bench: ... --> has no <!-- end --> on a line of its own")
    return PLACE.sub(lambda at: f"{at['open']}{chr(10).join(table(at['words'], root))}\n{at['close']}", text)


def page(name: str, root: Path = ROOT) -> tuple[str, str]:
    """A page as it is, and as it should be. Raises ValueError as `filled`, and if a promised table is not there."""
    text = (root / name).read_text(encoding="utf-8")
    if name in PAGES_WITH_TABLES and MARKER not in text:
        raise ValueError(f"it should have a table, and there is no marker {MARKER} ... -->")
    return text, filled(text, root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not up to date")
    args = parser.parse_args()
    stale = []
    for name in PAGES:
        try:
            before, after = page(name)
        except ValueError as error:
            sys.exit(f"{name}: {error}")
        if after != before:
            stale.append(name)
            if not args.check:
                (ROOT / name).write_text(after, encoding="utf-8")
                print(f"{name}: written", file=sys.stderr)
    if args.check and stale:
        sys.exit(f"{', '.join(stale)}: not what the results say; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
