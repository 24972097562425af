"""Manifests: Parquet, CSV, TSV and JSONL give the same pairs, and strangers' rows are named, never followed."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from truepair.errors import UserError
from truepair.pairs.index import IndexSummary, index
from truepair.pairs.table import PairTable

ROWS = [("images/0.png", "plain"), ("images/1.png", 'with "quotes", a comma'), ("images/2.png", "é and\na second line")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "images").mkdir(parents=True)
    for shade in range(4):
        Image.new("RGB", (5, 4), (shade, 0, 0)).save(tmp_path / "in" / "images" / f"{shade}.png")
    return tmp_path / "in"


def captions(summary: IndexSummary) -> list[list[str]]:
    table = PairTable.open(summary.table)
    return [table.captions()[row] for row in range(len(table))]


def write(path: Path, columns: dict[str, list[object]]) -> Path:
    import csv

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table(columns), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case suffix:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_paths_and_captions_are_found_by_their_usual_names(folder: Path, tmp_path: Path, suffix: str) -> None:
    columns = {"Filepath": [path for path, _ in ROWS], "title": [text for _, text in ROWS], "label": [4, 5, 6]}
    summary = index([write(folder / f"list{suffix}", columns)], tmp_path / "table")
    table = PairTable.open(summary.table)
    assert captions(summary) == [[text] for _, text in ROWS]
    assert [table.strings("key")[row] for row in range(3)] == [f"list/{row:09d}" for row in range(3)]
    assert table.image_bytes(2) == (folder / "images" / "2.png").read_bytes()
    assert list(table.numbers("label")) == [4, 5, 6]
    assert (summary.skipped, summary.members) == ({}, 3)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_columns_can_be_named_and_several_hold_captions(folder: Path, tmp_path: Path, suffix: str) -> None:
    columns = {
        **{"where": [f"images/{n}.png" for n in range(3)], "raw": ["no"] * 3, "uid": ["k0", "k1", "k2"]},
        **{"en": ["dog", "cat", "cow"], "fr": ["chien", "chat", "vache"], "width_cm": [1, 2, 3]},
    }
    summary = index(
        [write(folder / f"list{suffix}", columns)],
        tmp_path / "table",
        image_column="where",
        caption_columns=["fr", "en"],
        extra_columns=["width_cm"],
    )
    table = PairTable.open(summary.table)
    assert captions(summary) == [["chien", "dog"], ["chat", "cat"], ["vache", "cow"]]
    assert table.strings("key")[1] == "k1"
    assert list(table.numbers("width_cm")) == [1, 2, 3]


def test_lists_of_captions_stay_lists(folder: Path, tmp_path: Path) -> None:
    texts = [["a", "b"], ["c"]]
    paths = [f"images/{n}.png" for n in range(2)]
    pq.write_table(pa.table({"path": paths, "caption": texts}), folder / "a.parquet")
    sentences = [[{"raw": text, "tokens": [text]} for text in row] for row in texts]
    pq.write_table(pa.table({"path": paths, "sentences": sentences}), folder / "b.parquet")
    write(folder / "c.jsonl", {"path": paths, "captions": texts})
    write(folder / "d.csv", {"path": paths, "raw": [json.dumps(row) for row in texts]})
    for name in ("a.parquet", "b.parquet", "c.jsonl", "d.csv"):
        assert captions(index([folder / name], tmp_path / name)) == texts


def test_a_csv_with_tabs_as_open_clip_writes_it_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "train.csv").write_text("\ufefffilepath\ttitle\nimages/0.png\ta, b\n", encoding="utf-8")
    assert captions(index([folder / "train.csv"], tmp_path / "table")) == [["a, b"]]


def test_a_folder_with_metadata_means_its_metadata(folder: Path, tmp_path: Path) -> None:
    write(folder / "images" / "metadata.csv", {"file_name": ["1.png"], "text": ["one"]})
    assert captions(index([folder / "images"], tmp_path / "table")) == [["one"]]


def test_a_folder_of_parquets_means_them_all_in_order(folder: Path, tmp_path: Path) -> None:
    for part in (1, 0):
        bytes_ = [(folder / "images" / f"{part}.png").read_bytes()]
        (folder / "data").mkdir(exist_ok=True)
        write(folder / "data" / f"train-{part}.parquet", {"image": bytes_, "text": [f"part {part}"]})
    assert captions(index([folder / "data"], tmp_path / "table")) == [["part 0"], ["part 1"]]


def test_every_bad_row_has_its_reason(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    paths = {
        "good": "images/0.png",
        "absolute": str(folder / "images" / "1.png"),
        "out": "../../etc/passwd",
        "sibling": "../in-other/x.png",
        "root": "/etc/passwd",
        "http": "https://example.org/x.png",
        "s3": "s3://bucket/x.png",
        "gone": "images/9.png",
        "nul": "images/\0.png",
        "folder": "images",
        "pipe": "pipe.png",
        "none": None,
        "number": 5,
    }
    lines = [json.dumps({"key": key, "path": path, "caption": key}) for key, path in paths.items()]
    lines += ["{broken", "[1]", "", json.dumps({"key": "nocaption", "path": "images/0.png"})]
    lines += [json.dumps({"key": "good", "path": "images/1.png", "caption": "twice"})]
    (folder / "a.jsonl").write_text("\n".join(lines))
    summary = index([folder / "a.jsonl"], tmp_path / "table")
    assert captions(summary) == [["good"], ["absolute"]]
    entries = [json.loads(line) for line in (summary.table / "skipped.jsonl").read_text().splitlines()]
    assert {entry["key"]: entry["reason"] for entry in entries} == {
        "out": "path outside root",
        "sibling": "path outside root",
        "root": "path outside root",
        "http": "remote path",
        "s3": "remote path",
        "gone": "missing file",
        "nul": "missing file",
        "folder": "missing file",
        "pipe": "missing file",
        "none": "missing image",
        "number": "missing image",
        "a/000000013": "unreadable json",
        "a/000000014": "unreadable json",
        "nocaption": "missing caption",
        "good": "duplicate key",
    }


def test_a_root_above_lets_paths_go_there(folder: Path, tmp_path: Path) -> None:
    write(folder / "a.csv", {"path": ["in/images/0.png"], "caption": ["x"]})
    assert captions(index([folder / "a.csv"], tmp_path / "table", root=tmp_path)) == [["x"]]


def test_bad_rows_of_a_csv_are_named(folder: Path, tmp_path: Path) -> None:
    content = b"path,caption\nimages/0.png,fine\nimages/1.png\nimages/2.png,caf\xe9\nimages/3.png,\n"
    (folder / "a.csv").write_bytes(content)
    summary = index([folder / "a.csv"], tmp_path / "table")
    assert captions(summary) == [["fine"]]
    assert summary.skipped == {"caption is not UTF-8": 1, "empty caption": 1, "unreadable row": 1}


def test_a_damaged_parquet_is_named_and_the_others_are_read(folder: Path, tmp_path: Path) -> None:
    columns = {"path": [f"images/{n % 4}.png" for n in range(4000)], "caption": [str(n) for n in range(4000)]}
    write(folder / "a.parquet", columns)
    data = bytearray((folder / "a.parquet").read_bytes())
    data[4:200] = bytes(196)
    (folder / "a.parquet").write_bytes(data)
    write(folder / "b.parquet", {"path": ["images/0.png"], "caption": ["b"]})
    summary = index([folder / "a.parquet", folder / "b.parquet"], tmp_path / "table")
    assert captions(summary)[-1] == ["b"]
    assert summary.skipped == {"unreadable manifest": 1}


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"path": ["x"], "foo": ["y"]}, {}, "which column is the caption.*path, foo"),
        ({"foo": ["x"], "caption": ["y"]}, {}, "which column is the image"),
        ({"path": ["x"], "caption": ["y"]}, {"caption_columns": ["text"]}, "no column 'text'; it has path, caption"),
        ({"path": ["x"], "caption": ["y"]}, {"extra_columns": ["style"]}, "no manifest has a column 'style'"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_columns_that_are_not_there_are_said_before_the_work(
    folder: Path, tmp_path: Path, suffix: str, columns: dict[str, list[object]], options: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        index([write(folder / f"a{suffix}", columns)], tmp_path / "table", **options)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_manifest_of_garbage_is_a_user_error(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\x00garbage" * 50)
    with pytest.raises(UserError, match=r"a\.\w+"):
        index([folder / name], tmp_path / "table")
