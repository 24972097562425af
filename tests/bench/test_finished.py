"""A table has figures of one corpus only: cells, noise lists and the corpus at hand must tell of the same data."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from truepair.bench import bench
from truepair.bench.finished import Data, agree
from truepair.bench.prepare import NoiseList
from truepair.errors import UserError

HELD_OUT = "evaluate.noto.zeroshot.digest"
LIST = NoiseList("noise/shuffle-40-0.parquet", "shuffle", 0.4, 0, 100, 40, 39, "clean", "noisy", "1")


def cell(rate: float, seed: int, pairs: str, held_out: str = "noto") -> dict[str, Any]:
    settings = {"pairs": pairs, HELD_OUT: held_out}
    name = f"clip-{rate}-{seed}"
    return {"cell": name, "kind": "shuffle" if rate else "", "rate": rate, "seed": seed, "settings": settings}


def test_cells_of_the_same_data_belong_into_one_table() -> None:
    cells = [cell(0.0, 0, "clean"), cell(0.0, 1, "clean"), cell(0.4, 0, "noisy"), cell(0.4, 1, "noisy too")]
    agree([HELD_OUT], cells, [LIST], Data("clean", {HELD_OUT: "noto"}))
    agree([HELD_OUT], cells, [])


@pytest.mark.parametrize(
    ("said", "cells", "lists"),
    [
        ("cell clip-0.0-1 has other pairs without noise", [cell(0.0, 0, "clean"), cell(0.0, 1, "other")], []),
        ("other pairs with 0.4 of shuffle noise, seed 0", [cell(0.4, 0, "noisy"), cell(0.4, 0, "other")], []),
        (f"other {HELD_OUT}", [cell(0.4, 0, "noisy"), cell(0.4, 1, "other", "another")], []),
        ("than noise/shuffle-40-0.parquet", [cell(0.4, 0, "other")], [LIST]),
        ("than noise/shuffle-40-0.parquet", [cell(0.0, 0, "other")], [LIST]),
        ("cell clip-0.0-0 has other pairs without noise (none)", [cell(0.0, 1, "clean"), cell(0.0, 0, "none")], []),
    ],
)
def test_data_that_differ_are_named_with_those_who_tell_them(said: str, cells: list[Any], lists: list[Any]) -> None:
    with pytest.raises(UserError) as refused:
        agree([HELD_OUT], cells, lists)
    assert said in str(refused.value) and "not of one table" in str(refused.value)


def test_the_corpus_at_hand_is_believed_first() -> None:
    here = Data("here", {HELD_OUT: "noto"})
    with pytest.raises(UserError, match=r"parquet has other pairs without noise \(clean\) than the corpus"):
        agree([HELD_OUT], [], [LIST], here)
    with pytest.raises(UserError, match="than the corpus"):
        agree([HELD_OUT], [cell(0.0, 0, "here", "another")], [], here)


def change(work: Path, name: str, **settings: Any) -> None:
    """Make a finished cell say that it was made by other settings."""
    file = work / "cells" / f"{name}.json"
    found = json.loads(file.read_text())
    found["settings"] |= settings
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip-plain-1", {"pairs": "0123456789abcdef"}),
        ("gate-soft-shuffle-40-0", {"pairs": "0123456789abcdef"}),
        ("clip-plain-0", {"evaluate.test.retrieval.digest": "0123456789abcdef"}),
        ("gate-soft-plain-1", {"corpus_options.n": 7, "batch_size": 31}),
    ],
)
def test_cells_of_another_corpus_are_in_no_table_and_nothing_runs_beside_them(
    name: str, settings: dict[str, Any], pretended: Callable[..., Any], machine: Any, tmp_path: Path, grid: Any
) -> None:
    pretended()
    work = tmp_path / "work"
    change(work, name, **settings)
    with pytest.raises(UserError, match=name):
        bench.report(grid, work)
    (work / "cells" / "clip-shuffle-40-1.json").unlink()
    machine.started.clear()
    with pytest.raises(UserError, match=name):
        pretended(seeds=[1], rates=[0.4])
    assert not machine.started, "all finished cells are looked at first, also those that were not asked for"


def test_a_report_needs_neither_corpus_nor_tables(pretended: Callable[..., Any], tmp_path: Path, grid: Any) -> None:
    _, results = pretended()
    grid.corpus = str(tmp_path / "gone")
    for file in (tmp_path / "work" / "cells").glob("*.json"):
        change(tmp_path / "work", file.stem, corpus=f"{grid.corpus}/train")
    (tmp_path / "work" / "tables").rename(tmp_path / "elsewhere")
    again = bench.report(grid, tmp_path / "work")
    assert len(again["cells"]) == 10 and again["noise"] == results["noise"]
    assert again["commands"] == ["truepair bench"]


def test_a_list_of_another_corpus_is_refused_before_anything_runs(
    pretended: Callable[..., Any], machine: Any, tmp_path: Path, grid: Any
) -> None:
    pretended(seeds=[0])
    other = dataclasses.replace(LIST, corpus="0123456789abcdef")
    machine.started.clear()
    file = tmp_path / "work" / "noise" / "shuffle-40-0.parquet"
    told = {name: value for name, value in vars(other).items() if name != "file"}
    pq.write_table(pq.read_table(file).replace_schema_metadata({"truepair.bench": json.dumps(told)}), file)
    with pytest.raises(UserError, match=r"shuffle-40-0\.parquet has other pairs without noise"):
        pretended(seeds=[1])
    assert not machine.started
