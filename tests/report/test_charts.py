"""Charts keep labels apart, smooth without shifting, and stay SVG whatever a run is called."""

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.noise import fit_losses, reliability
from truepair.report import charts
from truepair.report.charts import Line, Mark


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-0.5, 1.5), max_size=20))
def test_labels_keep_their_order_and_a_gap_within_the_chart(wanted: list[float]) -> None:
    gap = 0.085
    places = charts.spread(wanted, gap)
    least = min(gap, 1 / max(len(wanted) - 1, 1))
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(np.array(places)[order]) >= least - 1e-9).all()
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


def test_labels_that_are_apart_already_stay_where_they_are() -> None:
    assert charts.spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])


@pytest.mark.parametrize("n", [1, 2, 59, 240, 5000])
def test_smoothing_is_the_mean_of_the_known_neighbours(n: int) -> None:
    random = np.random.default_rng(n)
    y = np.where(random.random(n) < 0.1, np.nan, random.normal(size=n))
    line = charts.smoothed(Line("", np.arange(n, dtype=np.float64), y))
    half = n // charts.SMOOTHING // 2
    for at, value in zip(line.x.astype(int), line.y, strict=True):
        near = y[max(at - half, 0) : at + half + 1]
        expected = np.nanmean(near) if np.isfinite(near).any() else np.nan
        assert value == pytest.approx(expected, nan_ok=True)
    assert len(line.x) <= charts.POINTS and line.x[0] == 0 and line.x[-1] == n - 1


@pytest.mark.parametrize("label", ["clip", "$x^{$", "<b>&\"'", "\u732b", "url(#x) #010a01", "x" * 500])
def test_charts_are_well_formed_svg_with_colours_of_the_theme_only(label: str) -> None:
    x = np.arange(5.0)
    chart = charts.lines([Line(label, x, x, 0), Line("b", x, x * np.nan, 7)], label, across=Mark(1.0, label), low=0)
    root = ET.fromstring(chart)
    assert root.attrib["aria-label"] == label
    assert "".join(root.itertext()).count(label[:15]) >= 2  # at the end of its line and at the mark
    drawn = " ".join(value for element in root.iter() for name, value in element.attrib.items() if name == "style")
    assert "var(--run-0)" in drawn and "#" not in drawn.replace("url(#", "")


def test_histogram_shows_the_fit_only_if_it_is_sound() -> None:
    random = np.random.default_rng(0)
    loss = np.concatenate([random.normal(2, 0.4, 300), random.normal(6, 0.8, 200)])
    truth = np.arange(500) >= 300
    sound = charts.loss_histogram(loss, truth, fit_losses(loss), 4.0, "losses")
    assert "var(--matched)" in sound and "½" in sound
    equal = np.full(500, 2.0)
    degenerate = charts.loss_histogram(equal, None, fit_losses(equal), None, "losses")
    assert "var(--matched)" not in degenerate and "½" not in degenerate and "NaN" not in degenerate


@pytest.mark.parametrize("truth", [None, np.arange(300) % 3 == 0])
@pytest.mark.parametrize("most", [1, 40, 41, 5000])
def test_however_often_pairs_were_called_noisy_the_bars_are_few_and_hold_them_all(most: int, truth: np.ndarray) -> None:
    times = np.arange(300) * most // 299
    chart = charts.times_histogram(times, truth, "times")
    ET.fromstring(chart)
    assert ("var(--mismatched)" in chart) == (truth is not None) and "NaN" not in chart
    edges = charts.bar_edges(most)
    assert len(edges) - 1 <= charts.MOST_BARS and len(set(np.diff(edges).tolist())) == 1
    assert np.histogram(times, edges)[0].sum() == (times > 0).sum()


def test_fields_of_agreement_show_their_counts_and_colour_what_is_known() -> None:
    counts = np.array([[1200, 30], [0, 4]])
    known = charts.fields(
        counts, np.array([[0.1, 0.5], [0.0, 1.0]]), "known", columns=charts.BY_P_NOISE, rows=("a", "b")
    )
    root = ET.fromstring(known)
    text = " ".join("".join(root.itertext()).split())
    assert all(word in text for word in ("1,200", "30", "10 % really mismatched", "100 % really mismatched", "–"))
    assert "var(--mismatched)" in known
    plain = charts.fields(counts, None, "plain", columns=charts.BY_P_NOISE, rows=("a", "b"))
    assert "97 % of all pairs" in plain and "var(--mismatched)" not in plain


def test_drawing_leaves_the_users_matplotlib_settings_alone_and_heeds_none() -> None:
    diagram = reliability(np.array([0.1, 0.9, 0.8]), np.array([False, True, False]))
    plain = charts.reliability_diagram(diagram, "x")
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20}):
        assert charts.reliability_diagram(diagram, "x") == plain
        assert matplotlib.rcParams["font.size"] == 30
