"""Tables in documents are what their results.json says, and a document that says otherwise is found."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from truepair.bench.grid import Grid
from truepair.bench.results import gather

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"
HARDWARE: dict[str, Any] = {"processor": "one", "cores": 1, "memory_gib": 1, "gpus": []}
PAGE = "before\n<!-- truepair bench: a.json score rates=0 -->\nold\n<!-- end -->\nafter\n"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_of_documents", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(grid: Grid, tmp_path: Path) -> Path:
    """A directory with results of one cell in a.json."""
    made = {"truepair": "1", "commit": "", "versions": {}, "hardware": HARDWARE, "finished": "2026-01-01", "calls": []}
    one: dict[str, Any] = {"cell": "x", "line": "gate, soft", "method": "gate", "kind": "", "rate": 0.0, "seed": 0}
    one |= {
        "oracle": False,
        "figures": {"test": {"top1": 0.5}},
        "detection": {},
        "cost": {},
        "made": made,
        "settings": {},
    }
    results = gather(grid, [one], noise=[], failed={}, left=[])
    (tmp_path / "a.json").write_text(json.dumps(results))
    return tmp_path


def test_what_stands_between_the_markers_is_what_the_file_says(tables: ModuleType, root: Path) -> None:
    once = tables.filled(PAGE, root)
    assert "old" not in once and "| gate, soft | 50.0 |\n<!-- end -->\nafter\n" in once
    assert tables.filled(once, root) == once
    chosen = tables.filled(PAGE.replace("rates=0", 'rows="gate, soft"'), root)
    assert "| gate, soft | 50.0 |" in chosen
    page = tables.filled(PAGE.replace("score rates=0", "page"), root)
    assert "| gate, soft | 50.0 |" in page and "## Cost" in page and "1 of " in page
    assert once.startswith("before\n<!-- truepair bench: a.json score rates=0 -->\n| method (1 of 2 seeds) | clean |\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("b.json score", "b.json cannot be read"),
        ("a.json scores", "'scores' is no table"),
        ("a.json score columns=3", "'columns' is not known"),
        ("a.json top5", "no figures"),
        ("a.json score rates=0,0.4", r"no figures at rate 0\.4$"),
        ("a.json score rates=0,0.3", r"no figures at rate 0\.3$"),
        ('a.json score rows="gate, soft;clip;gates"', "no figures of the row clip; gates"),
        ("a.json detection", "no figures"),
        ("a.json cost", "no figures"),
        ("a.json cost rates=0", "cost is always whole"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_named(words: str, said: str, tables: ModuleType, root: Path) -> None:
    with pytest.raises(ValueError, match=said):
        tables.filled(f"<!-- truepair bench: {words} -->\n<!-- end -->\n", root)
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        tables.filled("<!-- truepair bench: a.json score -->\n| table |\n", root)


def test_the_documents_of_this_repository_are_up_to_date(tables: ModuleType) -> None:
    assert set(tables.PAGES_WITH_TABLES) <= set(tables.PAGES)
    for name in tables.PAGES:
        before, after = tables.page(name)
        assert before == after, f"{name}: run python benchmarks/tables.py"


def test_a_page_that_should_have_a_table_and_has_none_is_found(
    tables: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "page.md").write_text("no table\n")
    assert tables.page("page.md", root) == ("no table\n", "no table\n")
    monkeypatch.setattr(tables, "PAGES_WITH_TABLES", ("page.md",))
    with pytest.raises(ValueError, match="should have a table"):
        tables.page("page.md", root)
    (root / "page.md").write_text(PAGE)
    assert "| gate, soft |" in tables.page("page.md", root)[1]
