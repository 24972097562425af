"""Tables are means and standard deviations of cells, the same whichever way they are counted."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.bench import summary
from truepair.bench.cells import Cell
from truepair.bench.estimate import seconds_left, seconds_of
from truepair.bench.grid import CLEAN, ORACLE, Grid, Row
from truepair.bench.results import gather, page, write

HARDWARE = {"processor": "a processor", "cores": 2, "memory_gib": 24.0, "gpus": [], "system": "Linux"}
MADE: dict[str, Any] = {"truepair": "1", "commit": "abc", "versions": {"python": "3"}, "hardware": HARDWARE}
MADE |= {"place": "1 thread", "calls": ["truepair bench"]}
SCORES = {  # line -> (kind, rate) -> top-1 by seed
    "clip": {("", 0.0): [0.5, 0.52], ("shuffle", 0.4): [0.2, 0.24], ("shuffle", 0.2): [0.3, 0.34]},
    "gate, soft": {("", 0.0): [0.48, 0.46], ("shuffle", 0.4): [0.33, 0.31], ("shuffle", 0.2): [0.4]},
    ORACLE: {("shuffle", 0.4): [0.34, 0.36], ("shuffle", 0.2): [0.41, 0.45]},
}


def cell(line: str, kind: str, rate: float, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    noisy = {"auroc": 0.8 + seed / 10, "average_precision": 0.7, "ece": 0.1} if rate else {}
    return {
        "cell": f"{line}-{kind}-{rate}-{seed}",
        "line": line,
        "method": "clip",
        "kind": kind,
        "rate": rate,
        "seed": seed,
        "oracle": line == ORACLE,
        "steps": 12,
        "figures": {"noto": {"top1": top1, "text_to_image_r1": top1 / 2}},
        "detection": {} if line == ORACLE else noisy,
        "mined": {},
        "cost": {"samples_per_s": 700.0 + seed, "seconds": 100.0, "attempts": 1, "peak_memory": (1 + seed) * 2**30},
        "made": {**MADE, "finished": f"2026-01-0{1 + seed}T00:00:00Z"},
        "settings": {"epochs": 2, "seed": seed},
    } | more


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return [
        cell(line, kind, rate, seed, top1)
        for line, found in SCORES.items()
        for (kind, rate), values in found.items()
        for seed, top1 in enumerate(values)
    ]


@pytest.fixture
def results(grid: Grid, cells: list[dict[str, Any]]) -> dict[str, Any]:
    grid.rates = [0.4, 0.0, 0.2]
    return gather(grid, cells, noise=[], failed={}, left=["gate-soft-shuffle-20-1"])


def test_the_table_of_scores_has_both_reference_lines_and_the_clean_scores(results: dict[str, Any]) -> None:
    assert summary.score_table(results) == [
        "| method | clean | shuffle 20 % | shuffle 40 % |",
        "|---|--:|--:|--:|",
        "| *clip, clean* | 51.0 ± 1.4 | 51.0 ± 1.4 | 51.0 ± 1.4 |",
        "| *oracle filter* | 51.0 ± 1.4 | 43.0 ± 2.8 | 35.0 ± 1.4 |",
        "| clip | **51.0 ± 1.4** | 32.0 ± 2.8 | 22.0 ± 2.8 |",
        "| gate, soft | 47.0 ± 1.4 | **40.0 (1 seed)** | **32.0 ± 1.4** |",
    ]
    few = summary.score_table(results, rates=[0.4], rows=["clip"], figure="text_to_image_r1")
    assert few[0] == "| method | shuffle 40 % |" and few[2:] == ["| clip | 11.0 ± 1.4 |"]


def test_means_and_deviations_are_those_of_numpy_counted_by_hand(
    results: dict[str, Any], cells: list[dict[str, Any]]
) -> None:
    shown = summary.columns(results)
    for line in summary.lines(results, summary.score(results), shown, references=False):
        for column, found in zip(shown, line.cells, strict=True):
            wanted = SCORES[line.name][column.kind, column.rate]
            assert found is not None and found.n == len(wanted)
            assert math.isclose(found.mean, 100 * np.mean(wanted))
            assert found.sd is None if len(wanted) == 1 else math.isclose(found.sd or 0, 100 * np.std(wanted, ddof=1))


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), max_size=6))
def test_a_spread_is_the_mean_and_the_sample_deviation(values: list[float]) -> None:
    found = summary.spread(values)
    if not values:
        assert found is None
        return
    assert found is not None and math.isclose(found.mean, np.mean(values), rel_tol=1e-9, abs_tol=1e-6)
    wanted = np.std(values, ddof=1) if len(values) > 1 else None
    assert found.sd is None if wanted is None else math.isclose(found.sd or 0.0, wanted, rel_tol=1e-6, abs_tol=1e-6)


def test_several_held_out_sets_are_averaged_in_each_cell_first(grid: Grid) -> None:
    two = [
        cell("clip", "", 0.0, seed, 0.0, figures={"a": {"top1": a}, "b": {"top1": b}})
        for seed, (a, b) in enumerate([(0.2, 0.4), (0.6, 0.8)])
    ]
    grid.evaluate = [type(grid.evaluate[0])(name, "zeroshot") for name in ("a", "b")]
    results = gather(grid, two, noise=[], failed={}, left=[])
    assert "| clip | 50.0 ± 28.3 | – |" in summary.score_table(results)  # of 30 and 70
    assert "| clip | 60.0 ± 28.3 | – |" in summary.score_table(results, held_out="b")
    titles = [title for title, _, _ in summary.figures_of(results)]
    assert titles == ["top-1 %, mean of 2 held-out sets", "top-1 % on a", "top-1 % on b"]


def test_detection_and_cost_have_tables_of_their_own(results: dict[str, Any]) -> None:
    assert summary.detection_table(results) == [
        "| method | shuffle 20 %: AUROC / AP / ECE | shuffle 40 %: AUROC / AP / ECE |",
        "|---|--:|--:|",
        "| clip | 0.850 / 0.700 / 0.100 | 0.850 / 0.700 / 0.100 |",
        "| gate, soft | 0.800 / 0.700 / 0.100 | 0.850 / 0.700 / 0.100 |",
    ]
    assert summary.cost_table(results)[2:] == [
        "| clip | 700 | 1.00 | 100 | 2,048 |",
        "| gate, soft | 700 | 1.00 | 100 | 2,048 |",
        "| oracle filter | 700 | 1.00 | 100 | 2,048 |",
    ]


def test_the_files_hold_every_figure_of_every_cell(results: dict[str, Any], tmp_path: Path) -> None:
    write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    long = pq.read_table(tmp_path / "results.parquet").to_pylist()
    for one in results["cells"]:
        of_cell = {(row["set"], row["figure"]): row["value"] for row in long if row["cell"] == one["cell"]}
        assert of_cell["noto", "top1"] == one["figures"]["noto"]["top1"] and of_cell["", "steps"] == 12
        assert of_cell["", "peak_memory"] == one["cost"]["peak_memory"]
    assert results["settings"] == {"epochs": 2} and results["cells"][1]["settings"] == {"seed": 1}
    assert results["machines"] == [{name: MADE[name] for name in ("truepair", "commit", "versions", "hardware")}]
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# 2026-01-02, small\n")
    assert "a processor, 2 cores, 24 GiB, no GPU; python 3; truepair 1, commit abc." in text
    assert "15 of 16 cells done, 2 of 2 seeds." in text


def test_a_bar_in_a_name_or_a_line_break_in_last_words_does_not_break_the_page(results: dict[str, Any]) -> None:
    results["grid"]["methods"][0]["name"] = results["grid"]["clip"] = "a|b"
    for one in results["cells"]:
        one["line"] = "a|b" if one["line"] == "clip" else one["line"]
    results["failed"] = {"clip-plain-1": "no\n# such\nthing"}
    lines = page(results)
    assert any(line.startswith("| a\\|b |") for line in lines)
    assert "* clip-plain-1: no # such thing" in lines and not any("\n" in line for line in lines)


def test_commands_of_all_calls_stand_once_in_the_order_in_which_their_cells_were_done(
    grid: Grid, cells: list[dict[str, Any]]
) -> None:
    for place, one in enumerate(reversed(cells)):
        one["made"] |= {"finished": f"2026-01-01T00:{place:02}:00Z", "calls": ["second"] if place > 2 else ["first"]}
    results = gather(grid, cells, noise=[], failed={}, left=[])
    assert results["commands"] == ["first", "second"]
    lines = page(results)
    assert lines[lines.index("```") :][:4] == ["```", "first", "second", "```"]


def test_tables_say_by_how_many_judged_pairs_detection_was_measured(
    grid: Grid, cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert summary.measure(gather(grid, cells, noise=[], failed={}, left=[])) == "the truth"
    grid.labels = str(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("row,label\n")
    for count, one in enumerate(cells):
        one["detection"] = {"auroc": 0.8, "labelled": float(180 + count)} if count < 3 else {"auroc": 0.7}
    results = gather(grid, cells, noise=[], failed={}, left=[])
    assert results["grid"]["labels"]["file"] == "labels.csv" and len(results["grid"]["labels"]["digest"]) == 16
    said = "p_noise after the last epoch against 180–182 pairs that somebody judged (labels.csv), means."
    assert said in page(results)


def test_a_peak_that_no_cell_knows_is_a_dash(results: dict[str, Any]) -> None:
    for one in results["cells"]:
        one["cost"]["peak_memory"] = None
    assert summary.cost_table(results)[2] == "| clip | 700 | 1.00 | 100 | – |"


def test_a_bench_without_a_finished_cell_has_a_page_too(grid: Grid) -> None:
    results = gather(grid, [], noise=[], failed={"clip-plain-0": "no"}, left=["x"])
    text = "\n".join(page(results))
    assert "0 of 2 cells done" in text and "* clip-plain-0: no" in text


def test_the_time_left_is_told_from_cells_that_are_done() -> None:
    rows = [Row("clip", "clip"), Row("never", "never")]
    cells = [Cell(row, "", 0.0, seed) for seed in (0, 1, 2) for row in rows]
    assert seconds_left(cells, {}, {}, 2) is None
    took = {"clip-plain-0": 100.0, "clip-plain-1": 120.0}
    assert seconds_of(cells, took)["never-plain-0"] == 110  # nothing better is known
    took["never-plain-0"] = 400.0
    every = seconds_of(cells, took)
    assert (every["clip-plain-2"], every["never-plain-2"], every["clip-plain-0"]) == (110, 400, 100)
    assert seconds_left(cells, took, {}, 1) == 110 + 400 + 400
    assert seconds_left(cells, took, {"never-plain-1": 300.0}, 2) == max((110 + 100 + 400) / 2, 400)
    assert seconds_left(cells, dict.fromkeys(every, 1.0), {}, 2) == 0


def test_the_oracle_filter_may_be_all_that_is_known(results: dict[str, Any]) -> None:
    results["cells"] = [one for one in results["cells"] if one["oracle"]]
    assert summary.score_table(results)[2:] == ["| *oracle filter* | – | 43.0 ± 2.8 | 35.0 ± 1.4 |"]
    assert page(results)


def test_references_need_noise(grid: Grid) -> None:
    grid.rates = [0.0]
    results = gather(grid, [cell("clip", "", 0.0, 0, 0.5)], noise=[], failed={}, left=[])
    assert [line.name for line in summary.lines(results, summary.score(results), summary.columns(results))] == ["clip"]
    assert CLEAN not in "\n".join(page(results)) and summary.detection_table(results) == []
