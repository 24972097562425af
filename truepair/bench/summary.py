"""From cells to tables: means and standard deviations over seeds, a line a method, a column a kind and rate of noise.

All functions take what stands in results.json (`results.gather`), so a table can be made anew from the file alone.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truepair.bench.grid import CLEAN, FIGURES, ORACLE, percent
from truepair.bench.state import known

Results = Mapping[str, Any]
Value = Callable[[Mapping[str, Any]], float | None]  # of a cell

MEAN_OF_SETS = ""  # in place of a held-out set's name
DETECTED = ("auroc", "average_precision", "ece", "confidence_auroc")  # the last: of the method's own opinion
MIB = 2**20
COST = (
    "Medians of a line's cells. Speeds compare only where nothing else ran on the machine. Peak memory: the most that "
    "any cell had, on its GPU if it had one."
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; sd is None for one value."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Column:
    """A kind and rate of noise. head: what stands above it."""

    kind: str
    rate: float
    head: str


@dataclass(frozen=True)
class Line:
    """A line of a table. reference: it is no method of the grid's. cells: one a column, None where nothing is known."""

    name: str
    method: str
    reference: bool
    cells: list[Spread | None]


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation (n - 1 in the denominator) of values; None if there are none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def columns(results: Results, *, untouched: bool = True) -> list[Column]:
    """The columns of a grid: first that without noise (if `untouched`), then kind by kind with growing rates."""
    noises = [(kind, rate) for kind, rate in results["grid"]["noises"]]
    kinds = list(dict.fromkeys(kind for kind, rate in noises if rate))
    ordered = sorted((noise for noise in noises if noise[1]), key=lambda noise: (kinds.index(noise[0]), noise[1]))
    clean = any(not cell["rate"] for cell in results["cells"]) or any(not rate for _, rate in noises)
    first = [Column("", 0.0, results["grid"]["untouched"])] if clean and untouched else []
    return first + [Column(kind, rate, f"{kind} {percent(rate)} %") for kind, rate in ordered]


def score(results: Results, figure: str = "", held_out: str = MEAN_OF_SETS) -> Value:
    """A figure of a cell's evaluation, in percent; default: the grid's, the mean of the held-out sets that have it."""
    name = figure or results["grid"]["figure"]

    def value(cell: Mapping[str, Any]) -> float | None:
        sets = cell["figures"] if held_out == MEAN_OF_SETS else {held_out: cell["figures"].get(held_out, {})}
        found = [100 * figures[name] for figures in sets.values() if known(figures.get(name))]
        return statistics.fmean(found) if found else None

    return value


def detection(name: str) -> Value:
    """A figure of noise detection after the last epoch."""
    return lambda cell: cell["detection"].get(name)


def cost(name: str) -> Value:
    """A cell's cost."""
    return lambda cell: cell["cost"].get(name)


def lines(
    results: Results, value: Value, chosen: Sequence[Column], *, references: bool = True, every: bool = False
) -> list[Line]:
    """The lines of a table: first what stands beside the methods, then the methods as the grid has them.

    The oracle filter without noise is CLIP itself; CLIP without noise is the same beside every rate. every: also
    lines of which nothing is known.
    """
    cells, grid = results["cells"], results["grid"]

    def at(line: str, kind: str, rate: float) -> Spread | None:
        mine = (c for c in cells if (c["line"], c["kind"], c["rate"]) == (line, kind, rate))
        return spread([found for cell in mine if (found := value(cell)) is not None])

    found: list[Line] = []
    if references and any(rate for _, rate in grid["noises"]):
        clean = at(grid["clip"], "", 0.0)
        found.append(Line(CLEAN, "clip", True, [clean] * len(chosen)))
        oracle = [at(ORACLE, column.kind, column.rate) if column.rate else clean for column in chosen]
        found.append(Line(ORACLE, "clip", True, oracle))
    found += [
        Line(row["name"], row["method"], False, [at(row["name"], column.kind, column.rate) for column in chosen])
        for row in grid["methods"]
    ]
    return [line for line in found if every or any(line.cells)]


def best(found: Sequence[Line], *, least: bool = False) -> list[float | None]:
    """The best mean of each column among the methods; None where fewer than two are known."""
    methods = [line.cells for line in found if not line.reference]
    width = len(found[0].cells) if found else 0
    means = [[cell.mean for cells in methods if (cell := cells[place])] for place in range(width)]
    return [(min if least else max)(column) if len(column) > 1 else None for column in means]


def shown(cell: Spread | None, decimals: int = 1, usual: int = 0) -> str:
    """A mean ± standard deviation as text. usual: seeds of the other cells; another number of them is said."""
    if cell is None:
        return "–"
    sd = "" if cell.sd is None else f" ± {cell.sd:.{decimals}f}"
    few = f" ({cell.n} seed{'s' * (cell.n > 1)})" if usual and cell.n != usual else ""
    return f"{cell.mean:,.{decimals}f}{sd}{few}"


def markdown(heads: Sequence[str], found: Sequence[tuple[str, Sequence[str]]], first: str = "method") -> list[str]:
    """A Markdown table. found: the first cell of each line, and the others."""
    rows = [[first, *heads], *([name, *cells] for name, cells in found)]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    under = "|---|" + "--:|" * len(heads)
    text = [f"| {' | '.join(row)} |" for row in escaped]
    return [text[0], under, *text[1:]]


def score_table(
    results: Results,
    *,
    figure: str = "",
    held_out: str = MEAN_OF_SETS,
    rates: Sequence[float] = (),
    rows: Sequence[str] = (),
) -> list[str]:
    """The Markdown table of a figure; `rates` and `rows` leave all others out. The best method of a column is bold."""
    chosen = [column for column in columns(results) if not rates or column.rate in rates]
    found = [line for line in lines(results, score(results, figure, held_out), chosen) if not rows or line.name in rows]
    top, (usual, said) = best(found), seeds_of(results, found)
    text = []
    for line in found:
        cells = []
        for cell, most in zip(line.cells, top, strict=True):
            bold = cell is not None and not line.reference and cell.mean == most
            cells.append(f"**{shown(cell, usual=usual)}**" if bold else shown(cell, usual=usual))
        text.append((f"*{line.name}*" if line.reference else line.name, cells))
    return markdown([column.head for column in chosen], text, first=f"method{said}")


def seeds_of(results: Results, found: Sequence[Line]) -> tuple[int, str]:
    """The number of seeds that most of a table's means are of, and " (1 of 2 seeds)" where all are of fewer than asked.

    That is said once, then; where only some are of fewer, each of these says it (`shown`).
    """
    asked = len(results["grid"]["seeds"])
    counts = {cell.n for line in found for cell in line.cells if cell}
    if len(counts) != 1 or counts == {asked}:
        return asked, ""
    (usual,) = counts
    return usual, f" ({usual} of {asked} seeds)"


def detection_table(results: Results) -> list[str]:
    """The Markdown table of noise detection; none where nothing is known."""
    heads, found = detection_cells(results)
    return markdown(heads, found) if found else []


def detection_cells(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Heads, and (method, texts): AUROC / AP / ECE of p_noise, and AUROC of the method's own opinion, where known."""
    chosen = columns(
        results, untouched=any("auroc" in cell["detection"] for cell in results["cells"] if not cell["rate"])
    )
    by_name = {name: lines(results, detection(name), chosen, references=False, every=True) for name in DETECTED}
    found = []
    for number, line in enumerate(by_name["auroc"]):
        texts = []
        for place in range(len(chosen)):
            auroc, precision, ece, own = (of_name[number].cells[place] for of_name in by_name.values())
            three = " / ".join(f"{one.mean:.3f}" if one else "–" for one in (auroc, precision, ece))
            texts.append((three if auroc else "–") + (f" (own {own.mean:.3f})" if own else ""))
        if any(text != "–" for text in texts):
            found.append((line.name, texts))
    return [f"{column.head}: AUROC / AP / ECE" for column in chosen], found


def measure(results: Results) -> str:
    """What p_noise is compared with: the truth, or so many pairs that somebody judged."""
    labels = results["grid"]["labels"]
    if not labels:
        return "the truth"
    known_counts = (cell["detection"].get("labelled") for cell in results["cells"])
    counts = sorted({round(count) for count in known_counts if count is not None})
    many = "–".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    return f"{many} pairs that somebody judged ({labels['file']})".strip()


def cost_table(results: Results) -> list[str]:
    """The Markdown table of what a method costs."""
    return markdown(*cost_cells(results))


def cost_cells(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Heads, and (line, texts): medians over all cells of a line, of memory the most."""
    heads = ["samples/s", "against clip", "seconds a cell", "peak memory, MiB"]
    found: list[tuple[str, list[str]]] = []
    names = [*(row["name"] for row in results["grid"]["methods"]), ORACLE]

    def of(line: str, name: str) -> list[float]:
        values = (cell["cost"].get(name) for cell in results["cells"] if cell["line"] == line)
        return [value for value in values if known(value)]

    plain = of(results["grid"]["clip"], "samples_per_s")
    for line in names:
        speed, seconds = of(line, "samples_per_s"), of(line, "seconds")
        if seconds:
            middle = statistics.median(speed) if speed else 0.0
            ratio = f"{middle / statistics.median(plain):.2f}" if plain and middle else "–"
            peak = f"{max(memory) / MIB:,.0f}" if (memory := of(line, "peak_memory")) else "–"
            found.append((line, [f"{middle:,.0f}", ratio, f"{statistics.median(seconds):,.0f}", peak]))
    return heads, found


def figures_of(results: Results) -> list[tuple[str, str, str]]:
    """(title, figure, held-out set) of the tables: the score first, then it set by set, then the other figures."""
    grid = results["grid"]
    sets, main = grid["sets"], grid["figure"]
    has = {
        name: [one for one in sets if any(name in cell["figures"].get(one, {}) for cell in results["cells"])]
        for name in FIGURES
    }
    mean = f", mean of {len(has[main])} held-out sets" if len(has[main]) > 1 else ""
    found = [(f"{FIGURES[main]} %{mean}", main, MEAN_OF_SETS)]
    if mean:
        found += [(f"{FIGURES[main]} % on {one}", main, one) for one in has[main]]
    for name, head in FIGURES.items():
        if name != main and has[name]:
            mean = f", mean of {len(has[name])} held-out sets" if len(has[name]) > 1 else ""
            found.append((f"{head} %{mean}", name, MEAN_OF_SETS))
    return found
