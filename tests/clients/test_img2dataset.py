"""What img2dataset downloads from a careless site is indexed as it lies: every success is a row, or a named skip."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from careless_web import DAMAGED, DEAD, drawings, serving, site
from PIL import Image
from programs import foreign, needed, truepair

from truepair.pairs.image import decode_centre
from truepair.pairs.table import PairTable

pytestmark = pytest.mark.slow
PICTURES = 42
HOSTILE = (
    "naïve café — “curly” ‘quotes’ e\u0301 ﬁ",
    "שלום \u202eright to left\u202c مرحبا",
    "日本語のキャプション 👩‍👩‍👧‍👦 \u200b zero width",
    '\'single\' "double" `ticks` """three"""',
    "two\nlines",
    "three\r\nlines\r\n\r\nof Windows",
    "tab\tand \x0b and \x0c and \x1b[31m",
    "separators \u2028 and \x85 within",
    "<script>alert(1)</script>&amp;<img src=x onerror=alert(1)>",
    "back\\slash \\n \\u0041 %s %(x)d {c} {} ${HOME} $(id)",
    '["a", "list"]',
    '{"caption": "json", "captions": ["no"]}',
    "a,b;c|d",
    "null",
    "NaN",
    "-1e400",
    "../../etc/passwd",
    "  padded  ",
    "nul\0inside",
    "long " * 2_000,
)
NOWHERE = ("", "no address at all", "http://127.0.0.1:1/closed.jpg")
EMPTY = ("", " \n\t ", None)
EMPTY_REASONS = {"empty caption", "missing caption"}
LAYOUTS = {
    "webdataset": ["--output_format=webdataset", "--image_size=64", "--resize_mode=keep_ratio"],
    "files": ["--output_format=files", "--image_size=64", "--resize_mode=keep_ratio"],
    "parquet": ["--output_format=parquet", "--image_size=64", "--resize_mode=keep_ratio"],
    "as sent": ["--output_format=webdataset", "--disable_all_reencoding=True"],
}


@dataclass(frozen=True)
class Wanted:
    """A line of the list of URLs; `colour` is that of the picture's middle, None where there is no picture."""

    path: str
    caption: str | None
    colour: tuple[int, int, int] | None


@dataclass(frozen=True)
class Download:
    """What img2dataset has written and said, and the pair table made of it."""

    layout: str
    said: dict[str, dict]  # its own Parquet: key -> status, url, caption, ...
    successes: int  # by its own count
    wanted: dict[str, Wanted]  # by key
    table: PairTable
    rows: dict[str, int]  # key as img2dataset writes it -> row
    skipped: dict[str, str]  # the same key -> reason

    @property
    def succeeded(self) -> set[str]:
        return {key for key, line in self.said.items() if line["status"] == "success"}


def wanted() -> list[Wanted]:
    """Pictures with hostile captions first, then plain ones, then addresses with nothing or with rubbish behind."""
    pictures = drawings(PICTURES)
    captions = [*HOSTILE, *EMPTY] + [f"drawing number {i}" for i in range(len(pictures))]
    lines = [Wanted(p.path, text, p.colour) for p, text in zip(pictures, captions, strict=False)]
    lines += [Wanted("moved.jpg", "one that has moved", pictures[0].colour)]
    lines += [Wanted(pictures[3].path, "the same picture once more", pictures[3].colour)]
    lines += [Wanted(path, f"nothing at {path}", None) for path in (*DEAD, *DAMAGED)]
    return [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Wanted]]]:
    """The list of URLs as Parquet, and what stands behind its lines, while the site is open."""
    needed("img2dataset")
    lines = wanted()
    with serving(site(drawings(PICTURES))) as address:
        lines += [Wanted(url, f"nothing at {url}", None) for url in NOWHERE]
        urls = [line.path if line.path in NOWHERE else f"{address}/{line.path}" for line in lines]
        path = tmp_path_factory.mktemp("list") / "urls.parquet"
        pq.write_table(pa.table({"address": urls, "words": [line.caption for line in lines]}), path)
        yield path, lines


@pytest.fixture(scope="module", params=LAYOUTS)
def download(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    listed: tuple[Path, list[Wanted]],
) -> Download:
    """The list downloaded in one of img2dataset's layouts, in shards of 25, and its folder indexed as it is."""
    urls, lines = listed
    folder = tmp_path_factory.mktemp("download")
    columns = ["--input_format=parquet", "--url_col=address", "--caption_col=words"]
    how = ["--number_sample_per_shard=25", "--processes_count=1", "--thread_count=8", "--timeout=6"]
    foreign(
        "img2dataset", f"--url_list={urls}", f"--output_folder={folder}/out", *columns, *how, *LAYOUTS[request.param]
    )
    notes = [line for file in sorted((folder / "out").glob("*.parquet")) for line in pq.read_table(file).to_pylist()]
    said = {line["key"]: line for line in notes}
    stats = [json.loads(file.read_text()) for file in (folder / "out").glob("*_stats.json")]
    assert sum(shard["count"] for shard in stats) == len(said) == len(lines)
    # a key counts the lines of the list: shard number, then two digits for the place among its 25
    places = {key: 25 * int(key[:-2]) + int(key[-2:]) for key in said}

    indexed = truepair("index", str(folder / "out"), "--out", str(folder / "table"))
    table = PairTable.open(folder / "table")
    keys = table.strings("key")
    rows = {keys[row].rpartition("/")[2]: row for row in range(len(table))}
    skipped = [json.loads(line) for line in (folder / "table" / "skipped.jsonl").read_text().splitlines()]
    assert indexed["rows"] == len(table) == len(rows)
    assert indexed["skipped"] == Counter(line["reason"] for line in skipped)
    return Download(
        layout=request.param,
        said=said,
        successes=sum(shard["successes"] for shard in stats),
        wanted={key: lines[place] for key, place in places.items()},
        table=table,
        rows=rows,
        skipped={line["key"].rpartition("/")[2]: line["reason"] for line in skipped},
    )


def test_every_success_is_a_row_or_a_named_skip_and_nothing_else_is(download: Download) -> None:
    assert len(download.succeeded) == download.successes
    assert not download.rows.keys() & download.skipped.keys()
    failed = download.said.keys() - download.succeeded
    there = download.succeeded | (failed if download.layout == "parquet" else set())  # where failures are rows too
    assert download.rows.keys() | download.skipped.keys() == there
    assert all(download.skipped[key] == "missing image" for key in failed & there)
    assert {*DEAD, *NOWHERE} <= {download.wanted[key].path for key in failed}


def test_all_pictures_that_were_drawn_arrive(download: Download) -> None:
    drawn = {key for key, line in download.wanted.items() if line.colour is not None and line.path != "huge.png"}
    missed = drawn - download.succeeded
    assert {download.wanted[key].path for key in missed} <= {"moving.gif"}  # older OpenCV reads none
    empty = {key for key in drawn if download.wanted[key].caption in EMPTY}
    assert drawn - missed - empty <= download.rows.keys()


def test_captions_are_those_of_the_list_and_empty_ones_are_skipped(download: Download) -> None:
    captions = download.table.captions()
    for key, row in download.rows.items():
        text = (download.wanted[key].caption or "").replace("\0", " ")
        lines = text.replace("\r\n", "\n").split("\n") if download.layout == "files" else [text]
        assert captions[row] == [line.strip() for line in lines if line.strip()], key
    assert sum(download.wanted[key].caption in HOSTILE for key in download.rows) == len(HOSTILE)
    for key, line in download.wanted.items():
        if line.caption in EMPTY and download.said[key]["status"] == "success":
            assert download.skipped[key] in EMPTY_REASONS


def test_each_row_shows_the_picture_of_its_line(download: Download) -> None:
    for key, row in download.rows.items():
        data, line = download.table.image_bytes(row), download.wanted[key]
        pixels = decode_centre(data, 33)
        if line.colour is not None:
            assert np.abs(pixels[16, 16].astype(int) - line.colour).max() <= 30, line.path
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (download.table.numbers("width")[row], download.table.numbers("height")[row])


def test_what_is_no_picture_is_no_row(download: Download) -> None:
    key_of = {line.path: key for key, line in download.wanted.items()}
    if download.layout == "as sent":  # img2dataset looks at nothing then, and reports success
        assert {path: download.skipped.get(key_of[path]) for path in DAMAGED} == DAMAGED
        assert download.skipped[key_of["huge.png"]] == "bomb-sized image"
    else:
        mended = {"cut.jpg", "cut.png"}  # some versions of OpenCV make a whole picture of what there is
        assert not {key_of[path] for path in DAMAGED.keys() - mended} & download.rows.keys()
        assert {download.skipped[key] for key in download.succeeded & download.skipped.keys()} <= EMPTY_REASONS


@pytest.mark.parametrize("download", ["webdataset"], indirect=True)
def test_the_table_trains_and_is_audited(download: Download, tmp_path: Path) -> None:
    table = str(download.table.path)
    how = ["--model", "truepair-test", "--batch-size", "16", "--workers", "0", "--precision", "fp32", "--device", "cpu"]
    trained = truepair("train", "--data", table, "--out", str(tmp_path / "run"), "--epochs", "1", *how)
    assert trained["step"] == trained["steps"] == len(download.table) // 16 >= 2
    truepair("audit", table, "--model", str(tmp_path / "run"), "--out", str(tmp_path / "audit"), "--workers", "0")
    audited = pq.read_table(tmp_path / "audit" / "audit.parquet")
    assert audited["key"].to_pylist() == list(download.table.strings("key"))
    assert not any(audited["problem"].to_pylist()) and not audited["cosine"].null_count
