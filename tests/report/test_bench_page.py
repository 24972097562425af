"""The bench page shows every figure of results.json, is safe and self-contained, and the same every time."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from truepair.bench.grid import ORACLE
from truepair.bench.prepare import NoiseList
from truepair.bench.reading import from_toml
from truepair.bench.results import gather
from truepair.report.bench import write_bench_page

EVIL = '</p><script>alert("1")</script><img src=x onerror=alert(2)> $x_1$ | 猫'
GRID = """
corpus = "scenes"
model = "truepair-test"
kinds = ["shuffle", "truncate"]
rates = [0.0, 0.2, 0.4]
seeds = [0, 1]
[[methods]]
method = "clip"
[[methods]]
name = "NAME"
method = "gate"
options = { power = 0.5 }
"""


class Page(HTMLParser):
    """The tags, attributes and visible text of a page; complains of tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data + " "


def results_of(tmp_path: Path, name: str = "gate, soft", failed: str = "no such thing", cells: bool = True) -> Any:
    """What a bench of two methods, two kinds and rates of noise and two seeds would have found."""
    path = tmp_path / "small.toml"
    path.write_text(GRID.replace('"NAME"', repr(name)), encoding="utf-8")
    grid = from_toml(path)
    found = []
    scores = {"clip": 0.5, name: 0.45, ORACLE: 0.48}
    hardware = {"processor": "a processor", "cores": 2, "memory_gib": 24.0, "gpus": ["a GPU"], "system": "Linux"}
    made: dict[str, Any] = {"calls": ["truepair bench small.toml --out work"]}
    made |= {"truepair": "1", "commit": "abc", "versions": {"python": "3"}, "hardware": hardware, "place": "GPU 0"}
    for line, clean in scores.items():
        for kind, rate in grid.noises:
            for seed in grid.seeds:
                top1 = clean * (1 - rate) + seed / 100
                if line == ORACLE and not rate:
                    continue
                noisy = {"auroc": 0.8, "average_precision": 0.7, "ece": 0.1, "confidence_auroc": 0.6} if rate else {}
                one = {"cell": f"{line}-{kind}-{rate}-{seed}", "line": line, "method": "clip", "kind": kind}
                one |= {
                    "rate": rate,
                    "seed": seed,
                    "oracle": line == ORACLE,
                    "steps": 9,
                    "mined": {},
                    "settings": {"lr": 1},
                }
                one |= {"figures": {"test": {"top1": top1, "top5": 0.75}}, "detection": noisy}
                one |= {"cost": {"samples_per_s": 700, "seconds": 100, "peak_memory": 2**30}}
                found.append(one | {"made": made | {"finished": "2026-01-01T00:00:00Z"}})
    lists = [NoiseList("noise/shuffle-20-0.parquet", "shuffle", 0.2, 0, 1000, 200, 198, "abcd", "ef01", "1")]
    return gather(
        grid,
        found if cells else [],
        noise=lists,
        failed={"clip-shuffle-60-0": failed},
        left=["clip-shuffle-60-1"],
    )


def page_of(results: Any, tmp_path: Path) -> Page:
    return Page(write_bench_page(results, tmp_path / "bench.html"))


def test_scores_references_detection_and_cost_stand_on_the_page(tmp_path: Path) -> None:
    text = page_of(results_of(tmp_path), tmp_path).text
    head = "method clean shuffle 20 % shuffle 40 % truncate 20 % truncate 40 %"
    clean = " 50.5 ± 0.7" * 5
    assert f"{head} clip, clean{clean} oracle filter 50.5 ± 0.7 38.9 ± 0.7 29.3 ± 0.7 38.9 ± 0.7 29.3 ± 0.7" in text
    assert "gate, soft 45.5 ± 0.7 36.5 ± 0.7 27.5 ± 0.7 36.5 ± 0.7 27.5 ± 0.7" in text
    assert "0.800 / 0.700 / 0.100 (own 0.600)" in text
    assert "peak memory, MiB clip 700 1.00 100 1,024" in text
    assert "top-5 % method clean" in text
    assert "top-1 %, captions: shuffle" in text and "top-1 %, captions: truncate" in text
    assert "clip-shuffle-60-0 : no such thing" in text
    assert "gate, soft method gate; power 0.5" in text
    assert "a processor, 2 cores, 24 GiB, a GPU; python 3; truepair 1, commit abc." in text
    assert "noise/shuffle-20-0.parquet 1,000 200 198 abcd ef01 1" in text


def test_the_best_method_of_a_column_is_marked_and_no_reference_line_is(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    for cell in results["cells"]:
        if cell["oracle"]:
            cell["figures"]["test"]["top1"] = 0.99
    write_bench_page(results, tmp_path / "bench.html")
    found = re.findall(r'<td class="best">([^<]*)</td>', (tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert found[:5] == ["50.5 ± 0.7", "40.5 ± 0.7", "30.5 ± 0.7", "40.5 ± 0.7", "30.5 ± 0.7"]


def test_hostile_names_and_last_words_are_only_text(tmp_path: Path) -> None:
    results = results_of(tmp_path, EVIL, EVIL)
    results["grid"]["about"] = results["commands"][0] = EVIL
    page = page_of(results, tmp_path)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(" ".join(EVIL.split())) >= 4


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    page = page_of(results_of(tmp_path), tmp_path)
    text = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert not re.search("https?://", text) and "@import" not in text
    assert not {"script", "link", "iframe", "object", "base", "form", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))


def test_the_page_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    pages = [write_bench_page(results, tmp_path / name).read_bytes() for name in ("1.html", "2.html")]
    assert pages[0] == pages[1] and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize("rates", ["[0.0]", "[0.4]"])
def test_a_grid_with_one_column_or_no_finished_cell_has_a_page_too(rates: str, tmp_path: Path) -> None:
    results = results_of(tmp_path, cells=False)
    assert "No cell is done yet" in page_of(results, tmp_path).text
    whole = results_of(tmp_path)
    rate = float(rates.strip("[]"))
    whole["cells"] = [cell for cell in whole["cells"] if cell["rate"] == rate]
    whole["grid"]["noises"] = [noise for noise in whole["grid"]["noises"] if noise[1] == rate]
    text = page_of(whole, tmp_path).text
    assert ("oracle filter" in text.split("What it costs")[0]) == (rate > 0)
