"""The bench page: what each method reaches at each rate of noise, what it finds, what it costs, how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truepair.bench import results as made
from truepair.bench import summary
from truepair.bench.grid import CLEAN
from truepair.bench.summary import Column, Line
from truepair.report.curves import Figure
from truepair.report.render import render, write_page
from truepair.report.robustness import Series, clean_against_noisy, curves, look

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A line of a table on the page: cells are (text, is the best of its column), `look` the CSS of its swatch."""

    name: str
    cells: list[tuple[str, bool]]
    reference: bool = False
    look: str = ""


@dataclass(frozen=True)
class Table:
    """A table on the page."""

    title: str
    heads: list[str]
    lines: list[Shown]
    text: str = ""
    first: str = "method"
    open: bool = False


def write_bench_page(results: Results, out: Path) -> Path:
    """Write one self-contained HTML page about a bench (what stands in its results.json) and return its path.

    It is written whole or not at all, asks nothing of a network, and is the same for the same results.
    """
    grid = results["grid"]
    done = bool(results["cells"])
    titles = summary.figures_of(results) if done else []
    detection = _detection(results) if done else None
    page = render(
        "bench.html",
        title=f"{grid['name']}: methods on noisy pairs",
        about=grid["about"],
        progress=made.progress(results),
        date=results["date"][:10],
        score=_score(results, *titles[0]) if done else None,
        figures=_figures(results) if done else [],
        others=[_score(results, *title) for title in titles[1:]],
        detection=detection,
        detected=_detected(results) if detection else [],
        own=detection is not None and any("(own" in text for line in detection.lines for text, _ in line.cells),
        cost=_cost(results) if done else None,
        failed=list(results["failed"].items()),
        made=made.made_on(results),
        commands="\n".join(results["commands"]),
        measure=summary.measure(results),
        rows=_rows(results),
        model=grid["model"],
        settings="\n".join(f"{name} = {value!r}" for name, value in results["settings"].items()),
        noise=_noise(results),
    )
    write_page(out, page)
    return out


def _looks(results: Results) -> dict[str, str]:
    """The CSS of each line's swatch."""
    return {row["name"]: look(number) for number, row in enumerate(results["grid"]["methods"])}


def _score(results: Results, title: str, figure: str, held_out: str) -> Table:
    """The table of a figure of evaluations."""
    shown = summary.columns(results)
    found = summary.lines(results, summary.score(results, figure, held_out), shown)
    top, looks = summary.best(found), _looks(results)
    usual, said = summary.seeds_of(results, found)
    lines = []
    for line in found:
        cells = [
            (summary.shown(cell, usual=usual), cell is not None and not line.reference and cell.mean == most)
            for cell, most in zip(line.cells, top, strict=True)
        ]
        lines.append(Shown(line.name, cells, line.reference, looks.get(line.name, "")))
    text = "Mean ± standard deviation of the seeds, in percent; the best method of each column is bold."
    if any(line.reference for line in found):
        text += (
            " Clip, clean: CLIP without noise, the same beside every rate. Oracle filter: CLIP on the truly matched "
            "pairs alone, as many samples as the others see; no method that only filters or weighs should pass it."
        )
    return Table(title, [column.head for column in shown], lines, text, first=f"method{said}")


def _series(found: Sequence[Line], columns: Sequence[Column], kind: str, numbers: Mapping[str, int]) -> list[Series]:
    """The lines as curves over the rates of one kind of noise, with the corpus as it is at 0."""
    places = [place for place, column in enumerate(columns) if column.kind == kind or not column.rate]
    series = []
    for line in found:
        points = [(columns[place].rate, line.cells[place]) for place in places]
        known = [(100 * rate, cell) for rate, cell in points if cell]
        if known:
            series.append(
                Series(
                    line.name,
                    [rate for rate, _ in known],
                    [cell.mean for _, cell in known],
                    [cell.sd or 0.0 for _, cell in known],
                    numbers.get(line.name),
                )
            )
    return series


def _numbers(results: Results) -> dict[str, int]:
    return {row["name"]: number for number, row in enumerate(results["grid"]["methods"])}


def _figures(results: Results) -> list[Figure]:
    """The score against the rate, a chart for each kind of noise; and what robustness costs on clean data."""
    columns = summary.columns(results)
    found = summary.lines(results, summary.score(results), columns)
    title = summary.figures_of(results)[0][0]
    clean = next((line.cells[0].mean for line in found if line.name == CLEAN and line.cells[0]), None)
    methods_and_oracle = [line for line in found if line.name != CLEAN]
    figures = []
    for kind in dict.fromkeys(column.kind for column in columns if column.rate):
        series = _series(methods_and_oracle, columns, kind, _numbers(results))
        chart = curves(series, f"{title} against the rate of {kind} noise", level=clean, level_says=CLEAN)
        text = (
            "Rate of noise in percent of the pairs; bars: standard deviation of the seeds. The dashed line "
            "without points: the oracle filter."
        )
        figures.append(Figure(f"{title}, captions: {kind}", chart, text))
    points = _clean_and_noisy(found, columns)
    if len(points) > 1:
        chart = clean_against_noisy(points, f"{title} without noise and under noise")
        text = "Across: without noise. Up: mean of all rates and kinds of noise."
        text += " Robustness that was bought with clean accuracy lies to the left."
        figures.append(Figure(f"{title}, clean against noisy", chart, text))
    return figures


def _clean_and_noisy(found: Sequence[Line], columns: Sequence[Column]) -> list[Series]:
    """A point for each method that has all columns: its score without noise, the mean of those with noise."""
    points = []
    methods = [line for line in found if not line.reference]
    for number, line in enumerate(methods):
        means = [cell.mean for cell in line.cells if cell]
        if len(means) == len(columns) > 1 and not columns[0].rate:
            points.append(Series(line.name, [means[0]], [sum(means[1:]) / len(means[1:])], [0.0], number))
    return points


def _detected(results: Results) -> list[Figure]:
    """AUROC of p_noise against the rate, a chart for each kind of noise with several rates."""
    columns = summary.columns(results, untouched=False)
    found = summary.lines(results, summary.detection("auroc"), columns, references=False)
    figures = []
    for kind in dict.fromkeys(column.kind for column in columns):
        series = _series(found, columns, kind, _numbers(results))
        if any(len(one.x) > 1 for one in series):
            chart = curves(
                series, f"AUROC of p_noise against the rate of {kind} noise", level=0.5, level_says="guessing"
            )
            figures.append(
                Figure(f"AUROC of p_noise, captions: {kind}", chart, "Rate of noise in percent of the pairs.")
            )
    return figures


def _detection(results: Results) -> Table | None:
    looks = _looks(results)
    heads, found = summary.detection_cells(results)
    lines = [Shown(name, [(text, False) for text in cells], look=looks.get(name, "")) for name, cells in found]
    return Table("", heads, lines) if lines else None


def _cost(results: Results) -> Table:
    looks = _looks(results)
    heads, found = summary.cost_cells(results)
    lines = [Shown(name, [(t, False) for t in cells], name not in looks, looks.get(name, "")) for name, cells in found]
    return Table("", heads, lines, text=summary.COST)


def _rows(results: Results) -> list[tuple[str, str]]:
    """(line, its method, and the options, settings and towers of its own)."""
    found = []
    for row in results["grid"]["methods"]:
        own = [f"{name} {value}" for name, value in (row["options"] | row["train"]).items()]
        own += [f"{name} {value} where captions are corrupted" for name, value in row["noisy_options"].items()]
        own += [f"model {row['model']}"] if row["model"] else []
        own += [f"the nearest {row['rerank']} re-ranked too"] if row["rerank"] else []
        found.append((row["name"], f"method {row['method']}; {', '.join(own) or 'nothing of its own'}"))
    return found


def _noise(results: Results) -> Table | None:
    lines = [
        Shown(
            one["file"], [(f"{one[name]:,}" if isinstance(one[name], int) else str(one[name]), False) for name in NOISE]
        )
        for one in results["noise"]
    ]
    return Table("", list(NOISE.values()), lines, first="list") if lines else None


NOISE = {
    "pairs": "pairs",
    "corrupted": "corrupted",
    "mismatched": "fit no more",
    "corpus": "corpus",
    "result": "with noise",
    "truepair": "truepair",
}
