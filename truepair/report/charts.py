"""The charts of a report, each a function from numbers to an inline SVG element. Titles and legends are the page's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from truepair.noise import Mixture, Reliability
from truepair.report import svg
from truepair.report.svg import FAINT, HEIGHT, INK, MATCHED, MISMATCHED, PAPER, RUNS, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Vector = NDArray[np.float64]

POINTS = 300  # of a drawn line; more cannot be seen
SMOOTHING = 60  # a running mean is taken over this fraction of a run's steps
LABEL_GAP = 0.085  # least distance of two labels, of the chart's height
LONGEST_LABEL = 16  # characters; further ones are cut
MOST_BARS = 40
BY_P_NOISE = ("p_noise under ½", "p_noise ½ or more")


@dataclass(frozen=True)
class Line:
    """One run's curve: x and y (n,), NaN leaves a gap. `number` is the run's place in the report, for its colour.

    label: what to write at its end, "" for nothing. second: another opinion of the same run, drawn dashed and hollow.
    """

    label: str
    x: Vector
    y: Vector
    number: int = 0
    second: bool = False


@dataclass(frozen=True)
class Mark:
    """A thin reference line at a value, with what it means ("": said elsewhere)."""

    value: float
    meaning: str


def smoothed(line: Line) -> Line:
    """The line's running mean over a SMOOTHING-th of its steps (shorter at the ends), thinned to POINTS points."""
    n = len(line.y)
    half = n // SMOOTHING // 2
    known = np.isfinite(line.y)
    sums = np.cumsum(np.append(0.0, np.where(known, line.y, 0.0)))
    counts = np.cumsum(np.append(0, known))
    start, stop = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    seen = counts[stop] - counts[start]
    mean = np.where(seen > 0, (sums[stop] - sums[start]) / np.maximum(seen, 1), np.nan)
    shown = np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(np.int64))
    return Line(line.label, line.x[shown], mean[shown], line.number)


def lines(
    curves: Sequence[Line],
    description: str,
    *,
    across: Mark | None = None,
    upright: Mark | None = None,
    low: float | None = None,
    high: float | None = None,
    dots: bool = False,
) -> str:
    """Curves over epochs, each with its label at its end; `across` and `upright` are reference lines.

    `low`, `high`: the y axis reaches at least this far. `dots` marks every point, for figures of whole epochs.
    """
    from matplotlib.ticker import MaxNLocator

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [line.label for line in curves])
        for line in curves:
            colour, dash = _look(line.number)
            inside = PAPER if line.second else colour
            axes.plot(
                *(line.x, line.y),
                color=colour,
                linestyle=(0, (4, 2)) if line.second else dash,
                marker="o" if dots else "",
                markersize=3.5,
                markerfacecolor=inside,
            )
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, bottom if low is None else low), max(top, top if high is None else high))
        if across:
            axes.axhline(across.value, color=FAINT, linewidth=0.9, dashes=(3, 3))
            axes.annotate(
                across.meaning,
                (1, across.value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=FAINT,
            )
        if upright:
            axes.axvline(upright.value, color=FAINT, linewidth=0.9, dashes=(1, 2))
            axes.annotate(
                upright.meaning,
                (upright.value, 0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4, 4),
                textcoords="offset points",
                color=FAINT,
            )
        axes.set_xlabel("epoch")
        if dots:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _label_ends(axes, curves)

    return svg.draw(paint, description)


def loss_histogram(
    loss: Vector, truth: NDArray[np.bool_] | None, mixture: Mixture, crossing: float | None, description: str
) -> str:
    """How many pairs have which loss, the two fitted Gaussians over it, and p_noise on an axis of its own.

    loss: (m,) finite. truth: (m,) colours the bars by what the pairs really are; None leaves them grey. crossing: the
    loss from which p_noise is at least a half.
    """
    low, high = float(loss.min()), float(loss.max())
    edges = np.linspace(low, high if high > low else low + 1, 61)
    groups = [(loss, FAINT)] if truth is None else [(loss[~truth], MATCHED), (loss[truth], MISMATCHED)]

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [], right=34)
        for values, colour in groups:
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("loss of a pair")
        if mixture.degenerate:
            axes.set_ylim(bottom=0)
            return
        x = np.linspace(edges[0], edges[-1], 200)
        for density, colour in zip(mixture.density(x), (MATCHED, MISMATCHED), strict=True):
            axes.plot(x, density * len(loss) * (edges[1] - edges[0]), color=colour)
        axes.set_ylim(bottom=0)
        belief = axes.twinx()
        belief.grid(False)
        belief.plot(x, mixture.posterior(x), color=INK, linewidth=1.3, dashes=(4, 2))
        belief.set_ylim(0, 1.04)
        belief.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        belief.tick_params(right=False)
        if crossing is not None:
            belief.plot([crossing, crossing], [0, 0.5], color=INK, linewidth=0.9)
            belief.plot([crossing], [0.5], color=INK, marker="o", markersize=4.5)

    return svg.draw(paint, description)


def reliability_diagram(diagram: Reliability, description: str) -> str:
    """Share of really mismatched pairs where p_noise said so much; a dot's area grows with its number of pairs."""
    used = diagram.counts > 0

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [])
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, dashes=(3, 3))
        area = 12 + 220 * diagram.counts[used] / diagram.counts.max()
        axes.plot(diagram.confidence[used], diagram.accuracy[used], color=MISMATCHED, linewidth=1, alpha=0.5)
        axes.scatter(diagram.confidence[used], diagram.accuracy[used], area, MISMATCHED, edgecolors=PAPER, zorder=3)
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.08)
        axes.text(0.02, 0.97, "too trusting", color=FAINT, va="top")
        axes.text(0.99, 0.03, "too suspicious", color=FAINT, ha="right")
        axes.set_xlabel("p_noise")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_yticks([0, 0.5, 1])

    return svg.draw(paint, description)


def times_histogram(times: NDArray[np.int64], truth: NDArray[np.bool_] | None, description: str) -> str:
    """How many pairs were called noisy once, twice, …; those that never were have no bar.

    times: (m,), one of them at least above 0. truth: (m,) colours the bars by what the pairs really are; None leaves
    them grey. Beyond MOST_BARS times, a bar stands for several.
    """
    edges = bar_edges(int(times.max()))
    groups = [(times, FAINT)] if truth is None else [(times[~truth], MATCHED), (times[truth], MISMATCHED)]

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = _axes(figure, [])
        for values, colour in groups:
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("times called noisy")

    return svg.draw(paint, description)


def bar_edges(most: int) -> Vector:
    """Edges of at most MOST_BARS bars, each of the same number of whole numbers, that hold 1 to `most`."""
    width = -(-most // MOST_BARS)
    edges: Vector = np.arange(1, most + 1 + width, width).astype(np.float64) - 0.5
    return edges


def fields(
    counts: NDArray[np.int64],
    mismatched: Vector | None,
    description: str,
    *,
    columns: tuple[str, str],
    rows: tuple[str, str],
) -> str:
    """Four fields with their numbers of pairs.

    counts: (2, 2), [row, column], row 0 below. mismatched: (2, 2) in [0, 1], share of really mismatched pairs in each
    field, which colours it; None: not known, and how many they are colours it. columns, rows: what they are called.
    """
    strength = counts / max(counts.sum(), 1) if mismatched is None else mismatched
    colour, meaning = (FAINT, "of all pairs") if mismatched is None else (MISMATCHED, "really mismatched")

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [])
        axes.grid(False)
        for row, column in np.ndindex(2, 2):
            count, alpha = int(counts[row, column]), 0.04 + 0.4 * float(strength[row, column])
            width = [column + 0.01, column + 0.99]
            axes.fill_between(width, row + 0.015, row + 0.985, color=colour, alpha=alpha, linewidth=0)
            axes.text(column + 0.5, row + 0.55, f"{count:,}", ha="center", va="bottom", fontsize=15)
            share = f"{100 * strength[row, column]:.0f} % {meaning}"
            axes.text(column + 0.5, row + 0.42, share if count else "–", ha="center", va="top")
        axes.set_xlim(0, 2)
        axes.set_ylim(0, 2)
        axes.set_xticks([0.5, 1.5], columns)
        axes.set_yticks([0.5, 1.5], rows)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)

    return svg.draw(paint, description)


def spread(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places near the `wanted` ones, in the same order, at least `gap` apart and within [low, high] if they fit."""
    order = np.argsort(np.asarray(wanted), kind="stable")
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    # In coordinates less their steps, "a gap apart" is "not falling" and the range is the same for all.
    slack = np.maximum.accumulate(np.clip(np.asarray(wanted, np.float64)[order], low, high) - steps)
    places = np.empty(len(wanted))
    places[order] = np.clip(slack, low, high - gap * (len(wanted) - 1)) + steps
    return [float(place) for place in places]


def _axes(figure: "Figure", ends: Sequence[str], right: float = 10) -> "Axes":
    """Axes in the figure with room for tick labels and, on the right, for the labels of the lines' ends."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if any(ends):
        right = 12 + 6.3 * max(len(_cut(label)) for label in ends)
    left, bottom, top = 40, 36, 8
    axes = figure.add_axes(
        (left / WIDTH, bottom / HEIGHT, (WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT)
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 12):g}"))
    axes.margins(x=0.02, y=0.06)
    return axes


def _label_ends(axes: "Axes", curves: Sequence[Line]) -> None:
    """Write each line's label beside its last known value, in its colour, none over another."""
    low, high = axes.get_ylim()
    known = [line for line in curves if np.isfinite(line.y).any()]
    heights = [(line.y[np.isfinite(line.y)][-1] - low) / (high - low) for line in known]
    for line, height in zip(known, spread(heights, LABEL_GAP), strict=True):
        axes.text(1.02, height, _cut(line.label), color=_look(line.number)[0], va="center", transform=axes.transAxes)


def _look(number: int) -> tuple[str, str]:
    """Colour and dash of the run of that number."""
    return RUNS[number % len(RUNS)], ("-", "--", ":", "-.")[number // len(RUNS) % 4]


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
