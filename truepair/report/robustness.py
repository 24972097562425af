"""The charts of a bench page: a figure against the rate of noise, and what robustness costs without noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truepair.report import svg
from truepair.report.charts import LABEL_GAP, LONGEST_LABEL, spread
from truepair.report.svg import FAINT, HEIGHT, INK, RUNS, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("solid", "dashed", "dotted")  # of the second and third six methods


@dataclass(frozen=True)
class Series:
    """One line: x, y and the standard deviations of y, of n points. number: the method's place; None: the reference."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sd: Sequence[float]
    number: int | None


def look(number: int) -> str:
    """The CSS of a method's swatch."""
    return f"border-top: 3px {_dash(number)} var(--run-{number % len(RUNS)});"


def curves(series: Sequence[Series], description: str, *, level: float | None, level_says: str) -> str:
    """An SVG element with a line for each series, its name at its end, and a reference line at `level`."""

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [one.name for one in series])
        for one in series:
            reference = one.number is None
            axes.errorbar(
                *(one.x, one.y, one.sd),
                color=_colour(one),
                linestyle="dashed" if reference else _dash(one.number or 0),
                linewidth=1.3 if reference else 1.8,
                elinewidth=0.8,
                marker="" if reference else "o",
                markersize=3.5,
            )
        if level is not None:
            axes.axhline(level, color=FAINT, linewidth=0.9, dashes=(3, 3))
            axes.annotate(
                *(level_says, (1, level)),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=FAINT,
            )
        axes.set_xticks(sorted({x for one in series for x in one.x}))
        axes.set_xlabel("noise, %")
        low, high = axes.get_ylim()
        places = spread([(one.y[-1] - low) / (high - low) for one in series], LABEL_GAP)
        for one, place in zip(series, places, strict=True):
            axes.text(1.02, place, _cut(one.name), color=_colour(one), va="center", transform=axes.transAxes)

    return svg.draw(paint, description)


def clean_against_noisy(points: Sequence[Series], description: str) -> str:
    """An SVG element with a dot for each method (x: without noise, y: under noise), its name beside it."""

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, [one.name for one in points])
        axes.grid(True, axis="both")
        for one in points:
            axes.plot(one.x, one.y, color=_colour(one), marker="o", markersize=6, linestyle="")
        axes.margins(x=0.08, y=0.1)
        low, high = axes.get_ylim()
        places = spread([(one.y[0] - low) / (high - low) for one in points], LABEL_GAP)
        for one, place in zip(points, places, strict=True):
            axes.annotate(
                *(_cut(one.name), (one.x[0], one.y[0])),
                xytext=(1.03, place),
                textcoords="axes fraction",
                color=_colour(one),
                va="center",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4},
            )
        axes.set_xlabel("without noise")

    return svg.draw(paint, description)


def _axes(figure: "Figure", names: Sequence[str]) -> "Axes":
    """Axes with room for tick labels and, on the right, for names."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    left, bottom, top = 40, 36, 8
    right = 14 + 6.3 * max((len(_cut(name)) for name in names), default=0)
    place = (left / WIDTH, bottom / HEIGHT, (WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT)
    axes = figure.add_axes(place)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 12):g}"))
    axes.margins(x=0.03, y=0.06)
    return axes


def _colour(one: Series) -> str:
    return INK if one.number is None else RUNS[one.number % len(RUNS)]


def _dash(number: int) -> str:
    return DASHES[number // len(RUNS) % len(DASHES)]


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
