"""A matplotlib figure as SVG that lives inside a page: its colours follow the page's theme, its names stay its own.

Charts are drawn in the placeholder colours of `THEME`; in the SVG each becomes a CSS variable that the page sets for
light and for dark.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER, MATCHED, MISMATCHED = "#010a01", "#010a02", "#010a03", "#010a04", "#010a05", "#010a06"
RUNS = tuple(f"#010a1{number}" for number in range(6))
THEME = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    MATCHED: "matched",
    MISMATCHED: "mismatched",
    **{colour: f"run-{number}" for number, colour in enumerate(RUNS)},
}
WIDTH, HEIGHT = 360.0, 215.0  # points; a phone shows a chart at its natural size
FONT_SIZE = 9.5
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "truepair",
    "text.parse_math": False,  # a run may be called "$x"
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere
    "font.size": FONT_SIZE,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": FAINT,
    "axes.labelsize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.color": GRID,
    "ytick.labelcolor": FAINT,
    "ytick.left": False,
}


def draw(paint: Callable[["Figure"], None], description: str) -> str:
    """The SVG element of what `paint` draws on an empty figure of WIDTH x HEIGHT points.

    `description`, plain text, is what a screen reader says; each chart of a page needs another one. The same figure
    always gives the same text.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _embedded(file.getvalue(), description)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's must not change the page
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser draws the text and has it
        yield


def _embedded(document: str, description: str) -> str:
    """The <svg> element of an SVG document, fit to stand among others in one HTML page."""
    svg = document[document.index("<svg") :]
    for nuisance in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->"):  # a <style> rules the page
        svg = re.sub(nuisance, "", svg, flags=re.DOTALL)
    own = sha256((description + svg).encode()).hexdigest()[:8]  # a page has one name space for all its charts
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', svg))
    svg = re.sub(r"<[^>]+>", lambda tag: _themed(tag[0], own, used), svg)
    opening = f'<svg class="chart" role="img" aria-label="{escape(description)}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}">'
    return opening + re.sub(r">\s+<", "><", svg[svg.index(">") + 1 :]).strip()


def _themed(tag: str, own: str, used: set[str]) -> str:
    """A tag with CSS variables for colours, and with only the ids that are `used`, prefixed by `own`."""
    tag = re.sub(r' id="([^"]*)"', lambda name: f' id="{own}-{name[1]}"' if name[1] in used else "", tag)
    tag = re.sub(r'(?:xlink:)?(url\(|href=")#', rf"\1#{own}-", tag)
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
    tag = tag.replace("font-family: 'DejaVu Sans'; ", "")  # the page's own
    for colour, name in THEME.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag
