"""The audit page holds what it shows, says what is missing, and counts as the keep list does; hostile text stays so."""

import base64
import json
import re
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audits import make_table, write_audit
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
from truepair.evaluate.keeping import Judged, kept_rows
from truepair.evaluate.tallies import LONGEST_NAME, SOURCES
from truepair.noise.issues import ISSUES
from truepair.noise.issues.base import Found
from truepair.pairs.table import PairTable
from truepair.report.audit import write_audit_page
from truepair.report.audit.examples import embedded_json
from truepair.report.audit.keeping import tally
from truepair.report.audit.page import PAGE_BYTES
from truepair.report.audit.record import read_audit
from truepair.report.audit.samples import borderline_rows, samples_of, worst_rows
from truepair.report.audit.words import result

ROWS = 400
NOISY = np.arange(ROWS) % 5 == 0
ISSUE = {issue.name: issue for issue in ISSUES}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    captions = [[f"caption number {row}", "a second one"][: 1 + row % 2] for row in range(ROWS)]
    return make_table(tmp_path_factory.mktemp("plain") / "table", captions, [f"k{row}" for row in range(ROWS)])


@pytest.fixture
def audited(table: PairTable, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes an audit of the table; returns its numbers."""
    return lambda **options: write_audit(tmp_path / "out", table, NOISY, **options)


@pytest.fixture
def page(table: PairTable, tmp_path: Path) -> Callable[..., "Page"]:
    return lambda **options: Page(write_audit_page(tmp_path / "out", table, **options))


class Page(HTMLParser):
    """The tags, attributes, visible text and data of a page; complains of tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = " ".join(self.text.split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append("")
        if tag not in {"meta", "img", "input"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.text += data + " "

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


# -- choosing pairs ----------------------------------------------------------------------------------------------------

scores = st.lists(st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0, np.nan]), st.floats(0, 1, width=32)), max_size=40)


@settings(max_examples=150)
@given(scores, st.integers(0, 12), st.randoms(use_true_random=False))
def test_worst_are_the_flagged_of_highest_score_then_highest_loss(values: list[float], count: int, random: Any) -> None:
    score = np.array(values, np.float32)
    loss = np.array([random.choice([0.1, 0.2, np.nan]) for _ in values], np.float32)
    flag = score >= 0.5
    order = sorted(np.flatnonzero(flag).tolist(), key=lambda r: (-score[r], -np.nan_to_num(loss[r], nan=-9), r))
    assert worst_rows(score, flag, loss, count).tolist() == order[:count]


@settings(max_examples=150)
@given(scores, st.integers(0, 12))
def test_borderline_are_the_nearest_of_both_sides(values: list[float], count: int) -> None:
    score = np.array(values, np.float32)
    flag = score >= 0.5
    found = borderline_rows(score, flag, 0.5, count, np.zeros(0, np.int64)).tolist()
    near = [row for row in range(len(values)) if abs(score[row] - np.float32(0.5)) <= 0.2]
    sides = [[row for row in near if flag[row] == side] for side in (True, False)]
    assert set(found) <= set(near) and len(found) == min(count, len(near))
    for side in sides:  # of each side the nearest, and no fewer than its half
        taken = [row for row in found if row in side]
        assert len(taken) >= min(len(side), count // 2)
        distance = sorted(abs(score[row] - np.float32(0.5)) for row in side)
        assert sorted(abs(score[row] - np.float32(0.5)) for row in taken) == distance[: len(taken)]


def test_groups_are_shown_whole_or_cut_to_their_worst(audited, tmp_path: Path) -> None:
    found = audited()
    record = read_audit(tmp_path / "out")
    issue = next(issue for issue in record.issues if issue.name == "near_duplicate_image")
    group = np.array([-1 if g is None else g for g in found["near_duplicate_image_group"].to_pylist()])
    samples = samples_of(record, issue, 24)
    shown = [sample.group for sample in samples]
    assert samples and len(shown) == len(set(shown))
    for sample in samples:
        members = np.flatnonzero(group == sample.group)
        assert sample.size == len(members) and set(sample.rows) <= set(members)
        assert len(sample.rows) == min(len(members), 6)
    assert sum(len(sample.rows) for sample in samples if sample.kind == "worst") <= 24


# -- what remains ------------------------------------------------------------------------------------------------------


def judged_of(found: dict[str, Any]) -> dict[str, Judged]:
    """The audit's columns as those who write keep lists hold them."""
    judged = {}
    for entry in found["about"]["issues"]:
        if not entry["skipped"]:
            score = np.array([np.nan if v is None else v for v in found[entry["name"]].to_pylist()], np.float32)
            column = found.get(f"{entry['name']}_group")
            group = None if column is None else np.array([-1 if v is None else v for v in column.to_pylist()])
            judged[entry["name"]] = Judged(ISSUE[entry["name"]], Found(score, group))
    return judged


@pytest.mark.parametrize(
    "drop", [None, [], ["boilerplate_caption", "broken_image"], ["broken_image", "near_duplicate_image"]]
)
def test_the_page_counts_what_the_keep_list_holds(audited, tmp_path: Path, drop: list[str] | None) -> None:
    found = audited(unscored=[3, 50])
    record = read_audit(tmp_path / "out")
    left_out = ["broken_image"] if drop is None else drop
    counted = tally(record, left_out)
    judged = judged_of(found)
    match = -found["loss"]
    for step in (0, 1, 37, 370, 500, 999, 1000):
        kept = kept_rows(found["p"], match, step / 1000, judged, left_out)
        ledger = counted.ledger(step)
        assert ledger.remain == len(kept), step
        out = np.isfinite(found["p"]) & ~(found["p"] < step / 1000)
        assert (ledger.over, ledger.unscored) == (out.sum(), 2)
        assert ledger.noisy_kept == NOISY[kept].sum() and ledger.noisy_over == NOISY[out].sum()
        assert ledger.expected_kept == pytest.approx(found["p"][kept].sum(), abs=1e-3)
        lost = sum(count for _, count, on in ledger.flagged if on)
        assert ledger.remain + ledger.over + ledger.unscored + lost == ROWS
    assert counted.by_p.sum() == ROWS - 2


def test_the_command_repeats_what_the_audit_was_told(audited, page, tmp_path: Path) -> None:
    audited()
    file = tmp_path / "out" / "audit.json"
    about = json.loads(file.read_text())
    about |= {"table": "my table", "model": "local-dir:runs/a b/checkpoints/step-9"}
    about["settings"] = {
        "issues": ["mismatched_pair", "broken_image"],
        "against": [{"table": "coco"}],
        "language": "de",
        "labels": "labels.csv",
        "threshold": 0.37,
        "drop": ["broken_image", "near_duplicate_image"],
    }
    file.write_text(json.dumps(about))
    text = page().text
    base = (
        f"truepair audit 'my table' --model 'runs/a b' --out {tmp_path / 'out'} --issues mismatched_pair broken_image"
    )
    base += " --against coco --expect-language de"
    assert f"{base} --labels labels.csv --threshold 0.37 --drop broken_image near_duplicate_image" in text
    assert f"{base} --labels labels.csv Copy" in text
    about["settings"]["labels_random"] = True
    file.write_text(json.dumps(about))
    assert f"{base} --labels labels.csv --labels-random --threshold 0.37" in page().text


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_how_many_pairs_are_mismatched(audited, page) -> None:
    found = audited(unscored=[3], sources=[("shard", "a.tar", 300), ("shard", "b.tar", 100)])
    text = page().text
    expected = found["p"][np.isfinite(found["p"])].sum()
    assert f"About {expected:,.0f} of 399 scored pairs are mismatched" in text
    assert "Really mismatched, as the column is_noise has it: 80" in text
    assert "unreadable image: 1" in text and "Label the 40 pairs" in text
    first = found["p"][:300][np.isfinite(found["p"][:300])]
    assert "By shard" in text and f"a.tar 299 {(first >= 0.5).sum()} {100 * first.mean():.1f} %" in text
    assert "no second table was given (--against TABLE)" in text


@pytest.mark.parametrize(
    ("noisy", "said"), [(5, "and it is far off"), (2, "it can be far off"), (None, "it can be far off")]
)
def test_how_far_to_trust_the_level_is_said(noisy: int | None, said: str) -> None:
    truth = None if noisy is None else np.arange(10) < noisy
    record = SimpleNamespace(p_noise=np.full(10, 0.15), truth=truth, about={}, mixture=None)
    assert said in result(record).sure and "trust the order of the pairs" in result(record).sure


def test_labels_give_an_interval_and_the_recalibrated_scale(audited, page) -> None:
    told = {"kind": "isotonic", "labelled": 38, "unsure": 2, "rate": 0.2, "low": 0.15, "high": 0.26, "level": 0.95}
    found = audited(truth=False, calibration={**told, "before_ece": None, "after_ece": 0.0, "map": [[0, 0], [1, 0.9]]})
    made = page()
    assert "95 % interval 15.0–26.0 %, from 38 labelled pairs (2 more unsure)." in made.text
    assert "What your labels made of p_noise" in made.text and "before labels recalibrated it" in made.text
    over = int((np.clip(found["p"] ** 2, 0, 1) >= 0.5).sum())
    assert f"p_noise of at least 0.5 −{over}" in made.text


def test_the_reliability_diagram_names_the_scale_it_is_of(audited, page) -> None:
    told = {"kind": "platt", "labelled": 38, "rate": 0.2, "low": 0.15, "high": 0.26, "level": 0.95}
    audited()
    assert "Pairs are put together by p_noise;" in page().text
    audited(calibration={**told, "map": [[0, 0], [1, 0.9]]})
    assert "Pairs are put together by p_noise, as your labels recalibrated it;" in page().text


def test_images_of_a_second_table_that_nobody_saw_are_told(audited, page) -> None:
    unseen = {"unreadable image": 2, "missing or changed file": 1}
    audited(issues=["leaked_image"], against=[{"table": "coco<test>", "images": 5000, "unseen": unseen}])
    text = page().text
    assert "2 of 5,000 images of coco<test> could not be looked at (unreadable image): of these" in text
    assert "1 of 5,000 images of coco<test> could not be looked at (missing or changed file)" in text


def test_marks_are_kept_apart_where_images_captions_table_or_model_are_others(audited, page, tmp_path: Path) -> None:
    audited()
    file = tmp_path / "out" / "audit.json"
    about = json.loads(file.read_text())
    scores = about["settings"]["scores"]
    others = [{"settings": {"scores": scores | {name: "3c"}}} for name in ("images", "captions")]
    names = []
    for change in (
        {},
        *others,
        {"table": "other"},
        {"model": "other"},
        {"settings": {"threshold": 0.3} | about["settings"]},
    ):
        file.write_text(json.dumps(about | change))
        names.append(page().data["storage"])
    assert len(set(names)) == 5 and names[0] == names[-1]


def test_the_page_asks_nothing_of_a_network_and_runs_one_script(audited, page) -> None:
    audited()
    made = page()
    assert not re.search("https?://", made.source.replace("http://www.w3.org", "")) and "@import" not in made.source
    assert not {"link", "iframe", "object", "base"} & set(made.tags)
    assert made.tags.count("style") == 1 and made.tags.count("script") == 2
    [policy] = [value for value in made.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("script-src")[1]
    assert sha256(made.scripts[1].encode()).digest() == base64.b64decode(
        re.findall("script-src 'sha256-([^']+)'", policy)[0]
    )
    assert not any(name.startswith("on") for name, _ in made.attributes)
    assert all(value.startswith("data:image/jpeg;base64,") for value in made.values("src")) and made.values("src")
    names = made.values("id")
    assert len(names) == len(set(names))
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert forbidden not in made.scripts[1]


def test_every_picture_stands_in_the_page_once(audited, page) -> None:
    audited()
    made = page()
    uris = made.values("src") + [uri for uri in made.data["pictures"] if uri]
    assert len(uris) == len(set(uris))
    places = {int(place) for place in made.values("data-picture")}
    assert {shape["at"] for shape in made.data["shapes"].values()} == set(range(len(made.data["pictures"])))
    assert places == {place for place, uri in enumerate(made.data["pictures"]) if not uri}


def test_the_page_is_the_same_for_the_same_audit_and_written_whole(audited, page, table, tmp_path: Path) -> None:
    audited()
    first = page().source
    assert page().source == first
    assert not list((tmp_path / "out").glob(".*partial*"))


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_embedded_data_cannot_end_its_element(text: str) -> None:
    embedded = str(embedded_json([text]))
    assert json.loads(embedded) == [text]
    assert not re.search("[<>&\u2028\u2029]", embedded)


def test_a_page_of_grainy_pictures_and_long_captions_stays_small(tmp_path: Path) -> None:
    captions = [["<&>" * 40_000 if row % 50 == 0 else "\u732b<" * 1500] * 7 for row in range(240)]
    grainy = make_table(tmp_path / "table", captions, ["\u732b" * 200] * 240, side=128, grain=255)
    sources = [(kind, f"{i:0>3}{'<' * (LONGEST_NAME - 3)}", 1) for kind in ("shard", "domain") for i in range(SOURCES)]
    write_audit(tmp_path / "out", grainy, NOISY[:240], to_label=240, sources=sources)
    path = write_audit_page(tmp_path / "out", grainy, per_issue=64)
    made = Page(path)
    assert len(made.data["pairs"]) > 200 and path.stat().st_size < PAGE_BYTES + 50_000
    assert sum("at" in shape for shape in made.data["shapes"].values()) == len(made.data["pairs"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"itm": False}, "mismatched"),
        ({"truth": False}, "This is the model's own estimate"),
        ({"truth": False, "itm": False, "issues": ()}, "No issue was looked for"),
        ({"degenerate": True}, "How many pairs are mismatched is not known The losses do not fall into two groups"),
        ({"unscored": range(ROWS), "issues": ()}, "No pair could be scored"),
        ({"to_label": 0}, "What to keep"),
    ],
)
def test_what_an_audit_lacks_is_said(audited, page, options: dict[str, Any], said: str) -> None:
    audited(**options)
    made = page()
    assert said in made.text
    assert ("Label a sample" in made.text) == bool(options.get("to_label", 1) and options.get("unscored") is None)


def test_pictures_that_cannot_be_shown_are_named(audited, table, tmp_path: Path) -> None:
    gone = table.path.parent / "gone"
    (table.path / "images").rename(gone)
    try:
        audited()
        made = Page(write_audit_page(tmp_path / "out", table))
    finally:
        gone.rename(table.path / "images")
    assert "no picture: image file not readable" in made.text and not made.values("src")


def test_what_is_no_audit_of_the_table_is_one_clear_line(audited, table, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished audit"):
        write_audit_page(tmp_path, table)
    audited()
    file = tmp_path / "out" / "audit.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"n": 7}))
    with pytest.raises(UserError, match=r"has 400 rows, audit[.]json speaks of 7"):
        write_audit_page(tmp_path / "out", table)
    file.write_text(json.dumps(json.loads(whole) | {"id": "another"}))
    with pytest.raises(UserError, match=r"audit[.]parquet and audit[.]json are of two audits"):
        write_audit_page(tmp_path / "out", table)
    file.write_text(whole[:100])
    with pytest.raises(UserError, match="cannot be read"):
        write_audit_page(tmp_path / "out", table)
    file.write_text(whole.replace('"rows": [', '"rows": [99999, '))
    with pytest.raises(UserError, match=r"sample to label .* is damaged"):
        write_audit_page(tmp_path / "out", table)
    assert not (tmp_path / "out" / "audit.html").exists()
