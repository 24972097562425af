"""The run page is safe, self-contained, the same every time, and says what is missing."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from truepair.errors import UserError
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PairTable
from truepair.report import run_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags, attributes and visible text of a page; complains of tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data + " "

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    return lambda *runs, **options: Page(run_report(runs, tmp_path / "report.html", **options))


def test_key_figures_of_every_run_stand_in_the_table(make_run, report) -> None:
    page = report(make_run("a", "clip"), make_run("b", "gate"))
    assert "clip 4 of 4 24.1 50.0 12.5 0.970 33.0 1,020" in page.text  # median of 1001..1040, to even
    assert "gate 4 of 4 24.1 50.0 12.5 0.970 33.0 1,020" in page.text
    assert "20 of them are really mismatched" in report(make_run("c"), worst=20).text


def test_page_asks_nothing_of_a_network(make_run, report, tmp_path: Path) -> None:
    page = report(make_run("a"), make_run("b", "gate"), title="two runs")
    text = (tmp_path / "report.html").read_text()
    assert not re.search("https?://", text) and "@import" not in text
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert page.tags.count("style") == 1  # the style of a chart would rule the whole page
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src")) and page.values("src")
    local = page.values("href") + re.findall(r"url\(([^)]*)\)", text)
    assert all(value.startswith("#") for value in local)
    names = page.values("id")
    assert len(names) == len(set(names)) and {value[1:] for value in local} == set(names)


def test_hostile_captions_titles_and_names_are_only_text(make_run, report, table: PairTable, tmp_path: Path) -> None:
    evil = '</p><script>alert("1")</script><img src=x onerror=alert(2)>'
    table.add_column("caption_web", [[evil, "\x00\u202eabc", "c" * 9999]] * len(table), {})
    table.caption_column = "caption_web"
    table.save()
    page = report(make_run("$x_<b>$"), make_run("\u732b&"), title="<script>x</script>")
    assert "script" not in page.tags and not page.values("onerror")
    assert evil in page.text and "<script>x</script>" in page.text and "$x_<b>$" in page.text
    assert "before: caption number" in page.text
    assert "\x00" not in page.text and "c" * 200 not in page.text


def test_broken_and_missing_images_are_named_in_their_place(make_run, report, table: PairTable) -> None:
    run = make_run()
    whole = report(run, worst=60).values("src")
    (table.path / "images" / "0.png").write_bytes(b"x" * int(table.numbers("size")[0]))
    (table.path / "images" / "3.png").unlink()
    page = report(run, worst=60)
    assert len(whole) == 60 and len(page.values("src")) == 58
    assert "no picture: unreadable image" in page.text and "no picture: image file not readable" in page.text


def test_page_is_the_same_for_the_same_runs(make_run, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", "gate", evals=3)]
    pages = [run_report(runs, tmp_path / name).read_bytes() for name in ("1.html", "2.html")]
    assert pages[0] == pages[1]
    assert not list(tmp_path.glob(".*partial*"))


def test_run_without_noise_fit_or_evaluation_says_so(make_run, report) -> None:
    page = report(make_run(noise=False, evals=0))
    assert "No evaluation has been made yet" in page.text
    assert "No noise model has been fitted yet: the first fit comes after 3 epochs" in page.text
    assert "Training loss" in page.text and not page.values("src")


def test_run_that_has_only_begun_says_so(make_run, report) -> None:
    run = make_run(noise=False, evals=0)
    (run / "metrics.jsonl").unlink()
    page = report(run)
    assert "training has not begun" in page.text and "no training steps to show yet" in page.text


def test_run_whose_table_is_gone_keeps_its_charts(make_run, report, table: PairTable) -> None:
    run = make_run()
    table.path.rename(table.path.with_name("elsewhere"))
    page = report(run)
    assert "Pictures, captions and truth are not shown" in page.text
    assert "Losses of all pairs" in page.text and not page.values("src")


def test_losses_that_fall_into_no_two_groups_are_said_to(make_run, report) -> None:
    run = make_run()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"degenerate": ""', '"degenerate": "means too close"'))
    columns = {"row": np.arange(60), "loss": np.full(60, 2.0), "p_noise": np.zeros(60)}
    write_parquet(run / "columns" / "epoch-0004.parquet", columns)
    page = report(run)
    assert "did not fall into two groups (means too close)" in page.text
    assert "24 pairs of highest loss" in page.text and "taken at its word" not in page.text


def test_only_evaluations_at_several_epochs_make_a_curve(make_run, report) -> None:
    assert "Zero-shot top-1" not in report(make_run("once", evals=1)).text
    assert "Zero-shot top-1" in report(make_run("often", evals=3)).text


def test_entries_in_which_runs_differ_are_listed(make_run, report) -> None:
    page = report(make_run("a"), make_run("b", "gate"))
    assert "The runs differ in: entry clip gate method clip gate clip: complete" in page.text


def test_what_is_no_run_is_one_clear_line(tmp_path: Path, make_run) -> None:
    with pytest.raises(UserError, match="not a run"):
        run_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="name at least one"):
        run_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="is a directory"):
        run_report([make_run()], tmp_path)
    assert not (tmp_path / "report.html").exists()
