"""The audit page in a real browser: hostile captions run nothing, sliders count right, labels go out and in."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import make_table, write_audit
from browser import NAMES, Browser, browser, executable

from truepair.noise.labels import read_labels
from truepair.pairs.table import PairTable
from truepair.report.audit import write_audit_page

pytestmark = pytest.mark.skipif(not executable(), reason=f"no browser: none of {', '.join(NAMES)} is on the PATH")

ROWS = 300
NOISY = np.arange(ROWS) % 4 == 0
RUN = "window.ran = (window.ran || 0) + 1"  # what a caption tries
HOSTILE = [  # lone surrogates cannot be stored: Parquet's strings are UTF-8
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"</p><svg onload='{RUN}'><style>body {{ display: none }}</style>",
    f"javascript:{RUN}",
    "\u202eright to left\u202d override \u2066isolate",
    "\u05db\u05dc\u05d1 \u05d7\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f3f4\u200d\u2620\ufe0f",
    "nul \x00 bell \x07 line\u2028separator\u2029 end",
    "=cmd|' /C calc'!A0",
    "\u732b" + "long " * 20_000,
    "${7*7} {{7*7}} {% raw %} <!-- <script>",
    "",
]
KEYS = {0: "=cmd()", 4: '+1,"quoted"', 8: "-2", 12: "@x", 16: 'plain, with "quotes"\nand a line', 20: "</script>"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairTable, dict[str, Any]]:
    """A page of hostile captions, its table and its numbers."""
    folder = tmp_path_factory.mktemp("hostile")
    captions = [[HOSTILE[row % len(HOSTILE)], f"plain words {row}"] for row in range(ROWS)]
    table = make_table(folder / "table", captions, [KEYS.get(row, f"k{row}") for row in range(ROWS)])
    sources = [("domain", f"<img src=x onerror={RUN}>", 200), ("domain", "b.example", 100)]
    found = write_audit(folder / "out", table, NOISY, unscored=[5], to_label=40, sources=sources)
    return write_audit_page(folder / "out", table), table, found


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(started: Browser, made: Any) -> Iterator[Browser]:
    """The page, opened, without marks. Whatever a test did, nothing of a caption ran and nothing was asked for."""
    started.open(made[0])
    started.evaluate("localStorage.clear()")
    started.reload()
    for happened in (started.requests, started.errors, started.dialogs):
        happened.clear()
    yield started
    assert started.evaluate("[window.ran, window.violations]") == [None, []]
    assert not started.errors
    assert not [url for url in started.requests if not url.startswith(("data:image/", "blob:", made[0].as_uri()))]


def number(text: str) -> int:
    return int("".join(filter(str.isdigit, text)))


def slide(page: Browser, threshold: float) -> None:
    page.choose("#threshold", str(threshold))


def test_hostile_captions_are_shown_and_nothing_of_them_runs(page: Browser) -> None:
    page.choose("#sort", "row")
    while page.evaluate("!document.getElementById('more').hidden"):
        page.click("#more")
    page.evaluate("document.querySelectorAll('.card .link').forEach((button) => button.click())")
    shown = page.evaluate("[...document.querySelectorAll('.captions p')].map((e) => e.textContent)")
    for caption in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[6], HOSTILE[9], HOSTILE[11]):
        assert caption in shown
    assert page.evaluate("[...document.querySelectorAll('.captions p')].every((e) => e.dir === 'auto' || !e.dir)")
    assert page.evaluate("document.querySelectorAll('.captions :is(script, img, svg, style)').length") == 0
    assert max(map(len, shown)) < 5000 and "more characters in audit.parquet" in " ".join(shown)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_slider_counts_as_brute_force_does(page: Browser, made: Any) -> None:
    found = made[2]
    p = found["p"]
    broken = found["broken_image_flag"]
    boilerplate = found["boilerplate_caption_flag"]
    for threshold in (0, 0.037, 0.5, 0.9, 1):
        slide(page, threshold)
        below = p < np.float32(threshold)
        kept = below & ~broken
        assert number(page.text("#remain")) == kept.sum(), threshold
        assert number(page.text("#over")) == (np.isfinite(p) & ~below).sum()
        assert f"leaves out {p[np.isfinite(p) & ~below].sum():,.0f} (" in page.text("#expected")
        noisy = NOISY & np.isfinite(p) & ~below
        share = noisy.sum() / max((np.isfinite(p) & ~below).sum(), 1)
        assert (
            f"precision {100 * share:.1f} %, recall {100 * noisy.sum() / (NOISY & np.isfinite(p)).sum():.1f} %"
            in (page.text("#real"))
            or not noisy.any()
        )
        assert page.text("#keep-command").endswith(f"--threshold {threshold:g}")
    slide(page, 0.5)
    page.click("[data-leave='0']")  # boilerplate captions
    assert number(page.text("#remain")) == ((p < 0.5) & ~broken & ~boilerplate).sum()
    assert page.text("#keep-command").endswith("--threshold 0.5 --drop boilerplate_caption broken_image")
    page.click("[data-leave='2']")  # incomplete captions: pairs with several flags fall out once
    checked = "[...document.querySelectorAll('[data-leave]:checked')].map((e) => `#flagged-${e.dataset.leave}`)"
    lost = sum(number(page.text(cell)) for cell in page.evaluate(checked))
    incomplete = found["incomplete_caption_flag"]
    assert (broken & incomplete | boilerplate & incomplete | broken & boilerplate)[p < 0.5].any()
    assert number(page.text("#remain")) + number(page.text("#over")) + lost + 1 == ROWS  # 1: not scored
    page.click("[data-leave='2']")
    page.click("#uids")
    assert page.text("#keep-command").endswith("broken_image --uids")
    page.type("#threshold-number", "0.25")
    assert number(page.text("#remain")) == ((p < 0.25) & ~broken & ~boilerplate).sum()


def test_a_group_left_out_keeps_its_best(page: Browser, made: Any) -> None:
    found = made[2]
    place = page.evaluate(
        "[...document.querySelectorAll('[data-leave]')].findIndex((e) => "
        "e.parentElement.textContent.includes('near duplicate'))"
    )
    page.click(f"[data-leave='{place}']")
    kept = (found["p"] < 0.5) & ~found["broken_image_flag"]
    group = np.array([-1 if g is None else g for g in found["near_duplicate_image_group"].to_pylist()])
    best = {
        g: min(np.flatnonzero(kept & (group == g)), key=lambda r: found["loss"][r]) for g in set(group[kept]) - {-1}
    }
    lost = found["near_duplicate_image_flag"] & ~np.isin(np.arange(ROWS), list(best.values()))
    assert number(page.text("#remain")) == (kept & ~lost).sum()


def test_examples_are_searched_filtered_and_sorted(page: Browser) -> None:
    whole = number(page.text("#shown").split(" pair")[0])
    page.type("#search", "PLAIN words 16")
    rows = page.evaluate("[...document.querySelectorAll('.card')].map((e) => Number(e.dataset.row))")
    assert 160 in rows and all("16" in str(row) for row in rows)
    page.type("#search", "nothing at all like it")
    assert page.text("#shown") == "None of the pairs that this page holds fits."
    page.click("#clear-filters")
    page.choose("#issue", "mismatched_pair")
    page.choose("#kind", "worst")
    assert number(page.text("#shown").split(" pair")[0]) == 24
    page.type("#low", "0.9")
    page.choose("#sort", "down")
    shown = [float(text.split("p_noise ")[1][:5]) for text in page.texts(".card .figures")]
    assert shown == sorted(shown, reverse=True) and min(shown) >= 0.9
    page.click("#clear-filters")
    assert number(page.text("#shown").split(" pair")[0]) == whole
    page.click("[data-show=near_duplicate_image]")
    assert page.evaluate("document.getElementById('issue').value") == "near_duplicate_image"
    assert page.evaluate("document.querySelectorAll('.group').length") > 1
    assert all(text.startswith("Group ") for text in page.texts(".group > p"))


def test_marked_pairs_come_out_as_labels_and_stay_after_a_reload(page: Browser, made: Any, tmp_path: Path) -> None:
    table = made[1]
    page.click("[data-show=mismatched_pair]")
    rows = page.evaluate("[...document.querySelectorAll('.card')].slice(0, 3).map((e) => Number(e.dataset.row))")
    for key in "kmu":
        page.key(key)
    assert page.text("#marks-said") == "3 pairs marked: 1 keep, 1 mismatch, 1 unsure."
    file = page.download("#download", tmp_path)
    assert file.name == "labels.csv"
    keys = table.strings("key")
    labels = read_labels(file, ROWS, lambda wanted: [keys[int(row)] for row in wanted])
    known = dict(zip(labels.rows.tolist(), labels.noisy.tolist(), strict=True))
    assert known == {rows[0]: False, rows[1]: True} and labels.unsure.tolist() == [rows[2]] and labels.told == ()
    page.reload()
    assert page.text("#marks-said") == "3 pairs marked: 1 keep, 1 mismatch, 1 unsure."
    page.choose("#marked", "mismatch")
    assert page.evaluate("[...document.querySelectorAll('.card')].map((e) => Number(e.dataset.row))") == [rows[1]]
    page.click("#clear")
    assert page.dialogs == ["Remove all 3 marks?"] and page.text("#marks-said") == "No pair is marked yet."
    page.put_file("#load", file)
    page.until("document.getElementById('load-said').textContent")
    assert page.text("#load-said") == "3 labels taken from the file."
    assert page.text("#marks-said") == "3 pairs marked: 1 keep, 1 mismatch, 1 unsure."


def test_a_mark_of_another_pair_is_not_taken_from_the_browser(page: Browser) -> None:
    page.click("[data-show=mismatched_pair]")
    for key in "km":
        page.key(key)
    storage = "Object.keys(localStorage).find((name) => name.startsWith('truepair-marks-'))"
    kept = page.evaluate(f"Object.entries(JSON.parse(localStorage.getItem({storage})))")
    assert [label for _, (label, _) in kept] and all(key for _, (_, key) in kept)
    row = kept[0][0]
    other = f"JSON.stringify({{...JSON.parse(localStorage.getItem({storage})), {row}: ['keep', 'of another pair']}})"
    page.evaluate(f"localStorage.setItem({storage}, {other})")
    page.reload()
    assert page.text("#marks-said").startswith("1 pair marked")
    assert page.text("#load-said") == "1 mark that this browser kept does not fit this audit: left out."


def test_keys_that_a_spreadsheet_would_run_are_left_out(page: Browser, made: Any, tmp_path: Path) -> None:
    marked = {row: "keep" for row in (*KEYS, 1)}
    given = tmp_path / "given.csv"
    with given.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(
            [["label", "row", "key"], *(("keep", row, made[1].strings("key")[row]) for row in marked)]
        )
    page.put_file("#load", given)
    page.until("document.getElementById('load-said').textContent")
    assert page.text("#load-said") == f"{len(marked)} labels taken from the file."
    file = page.download("#download", tmp_path / "out")
    with file.open(newline="", encoding="utf-8") as read:
        lines = {int(line["row"]): line for line in csv.DictReader(read)}
    assert set(lines) == set(marked) and all(line["label"] == "keep" for line in lines.values())
    assert [lines[row]["key"] for row in (0, 4, 8, 12)] == [""] * 4
    assert not any(value[:1] in "=+-@" for line in lines.values() for value in line.values() if value)
    assert lines[1]["key"] == "k1" and lines[20]["key"] == "</script>"


def test_what_does_not_fit_a_loaded_file_is_named(page: Browser, made: Any, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    one, two = made[2]["about"]["to_label"]["rows"][:2]
    lines = ["row;key;label", f"{one};;Keep", f"{two};of another;keep", "9999;;keep", "3;;maybe", "4;;"]
    file.write_text("\r\n".join(lines))
    page.put_file("#load", file)
    page.until("document.getElementById('load-said').textContent")
    said = page.text("#load-said")
    assert said.startswith("1 label taken from the file. 3 do not fit this audit")
    assert "line 3: the key belongs to another row; line 4: no such row; line 5: a label is" in said


def test_the_sample_is_labelled_by_keys_without_seeing_scores(page: Browser, made: Any) -> None:
    page.click("[data-tab=label]")
    cards = page.evaluate("[...document.querySelectorAll('.card')].map((e) => Number(e.dataset.row))")
    drawn = made[2]["about"]["to_label"]["rows"]
    assert sorted(cards) == drawn and cards != drawn  # who stops half-way has labelled a sample of them
    assert "p_noise" not in page.text("#cards") and "really" not in page.text("#cards")
    for key in ("k", "ArrowRight", "m", "ArrowLeft", "ArrowLeft", "u", "Backspace"):
        page.key(key)
    marks = page.evaluate("[...document.querySelectorAll('.card')].slice(0, 4).map((e) => e.dataset.mark)")
    assert marks == ["keep", "unsure", "", ""]  # m was given to the third, and taken back
    assert page.text("#label-count") == "2 of 40"
    page.key("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top > 0")
    assert page.evaluate("document.querySelector('#progress').getAttribute('aria-valuenow')") == "2"


def test_the_page_works_where_nothing_can_be_stored(page: Browser, made: Any) -> None:
    script = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no storage'); }})"
    added = page.send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    try:
        page.open(made[0])
        page.click("[data-show=mismatched_pair]")
        page.key("m")
        assert page.text("#marks-said") == "1 pair marked: 0 keep, 1 mismatch, 0 unsure."
        assert "keeps no marks once the page is closed" in page.text("#kept-where")
    finally:
        page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_sources_are_sorted_by_any_column(page: Browser) -> None:
    def order() -> list[str]:
        return [text.split()[-1] for text in page.texts(".sources tbody th")]

    first = order()
    page.click(".sources th[data-sort=text] button")
    assert order() == sorted(first, reverse=True)
    page.click(".sources th[data-sort=text] button")
    assert order() == sorted(first)


def test_without_scripts_it_is_a_report_to_read(started: Browser, made: Any) -> None:
    started.allow_scripts(False)
    try:
        started.open(made[0])
        shown = started.text("body")
        assert "pairs remain" in shown and "With scripts allowed" in shown and "Copy" not in shown
        seen = "[...document.querySelectorAll('#static img')].filter((e) => e.getBoundingClientRect().width).length"
        assert started.evaluate(seen) > 20
    finally:
        started.allow_scripts(True)
