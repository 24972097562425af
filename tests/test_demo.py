"""The demo: both methods compared in one JSON object and one page, also where emoji cannot be had."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from truepair import demo
from truepair.errors import UserError
from truepair.pairs.corpora import CorpusUnavailable
from truepair.pairs.corpora import tables as corpora

RECIPE = """
model = "truepair-test"
epochs = 2
batch_size = 64
workers = 0
precision = "fp32"
device = "cpu"

[noise]
warmup_epochs = 1
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for a demo that takes seconds."""
    (tmp_path / "quick.toml").write_text(RECIPE)
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "quick.toml")
    monkeypatch.setattr(demo, "SCENES", 200)
    return tmp_path / "demo"


def test_without_npm_the_demo_says_so_and_draws_scenes(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise CorpusUnavailable("npm cannot be reached")

    monkeypatch.setattr(corpora, "make_emoji", offline)
    console = Console(file=io.StringIO(), width=200)
    result = demo.run_demo(quick, seed=0, corpus="emoji", console=console)
    said = console.file.getvalue()
    assert "npm cannot be reached" in said and "scenes" in said
    assert result["corpus"] == "scenes"
    for method in ("clip", "gate"):
        assert set(result[method]) == {"top1", "top5", "r1", "auroc", "samples_per_s"}
        assert 0 <= result[method]["top1"] <= result[method]["top5"] <= 100
        assert 0 <= result[method]["auroc"] <= 1
    page = (quick / "report.html").read_text()
    assert "gate" in page and "clip" in page


def test_a_second_demo_keeps_the_corpus_and_replaces_the_runs(quick: Path) -> None:
    first = demo.run_demo(quick, seed=0, corpus="scenes", console=Console(quiet=True))
    shard = next((quick / "scenes" / "train" / "shards").iterdir())
    made = shard.stat().st_mtime_ns
    second = demo.run_demo(quick, seed=0, corpus="scenes", console=Console(quiet=True))
    assert shard.stat().st_mtime_ns == made
    assert [first[m]["top1"] for m in ("clip", "gate")] == [second[m]["top1"] for m in ("clip", "gate")]


def test_a_run_that_fails_is_named_with_its_last_words(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.RECIPE.write_text(RECIPE.replace("truepair-test", "no-such-model"))
    with pytest.raises(UserError, match=r"(clip|gate) failed: .*no-such-model"):
        demo.run_demo(quick, seed=0, corpus="scenes", console=Console(quiet=True))
