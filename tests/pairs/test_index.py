"""Indexing: every kind of source becomes rows, what cannot be used is named, and a table is whole or absent."""

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from truepair.errors import UserError
from truepair.pairs import index as index_module
from truepair.pairs import writing
from truepair.pairs.index import IndexSummary, index
from truepair.pairs.sources import shards
from truepair.pairs.table import PairTable
from truepair.pairs.writing import SeenKeys


def png(shade: int = 0, size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str | dict[str, Any]] | list[tuple[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            data = json.dumps(content) if isinstance(content, dict) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(summary: IndexSummary) -> PairTable:
    return PairTable.open(summary.table)


def rows(table: PairTable) -> dict[str, list[str]]:
    keys, captions = table.strings("key"), table.captions()
    return {keys[row]: captions[row] for row in range(len(table))}


def reasons(summary: IndexSummary) -> dict[str, str]:
    """key -> reason, from skipped.jsonl, checked against the counts of the summary."""
    lines = [json.loads(line) for line in (summary.table / "skipped.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == summary.skipped
    return {line["key"]: line["reason"] for line in lines}


# -- tars ----------------------------------------------------------------------------------------------------------


def test_a_shard_of_img2dataset_becomes_rows_with_their_facts(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": jpeg(1),
            "000000000.json": {"caption": "a dog", "url": "https://example.org/1.jpg", "exif": "{}"},
            "000000000.txt": "a dog\n",
            "000000001.webp": png(2),
            "000000001.json": {"caption": "a cat"},
        },
    )
    summary = index([tar], tmp_path / "table")
    table = opened(summary)
    assert (summary.rows, summary.members, summary.skipped) == (2, 5, {})
    assert rows(table) == {"000000000": ["a dog"], "000000001": ["a cat"]}
    assert table.image_bytes(0) == jpeg(1)
    assert [int(table.numbers(name)[0]) for name in ("row", "source", "width", "height")] == [0, 0, 64, 48]
    assert table.strings("path")[1] == "000000001.webp"
    assert table.column_names == []


def test_captions_of_a_tar_come_from_the_chosen_field_else_the_list_else_the_text_else_the_json(tmp_path: Path) -> None:
    facts = {"caption": "one", "captions": ["first", "second"], "alt": "alternative"}
    tar = write_tar(
        tmp_path / "a.tar",
        {
            **{"a.png": png(), "a.txt": "text", "a.json": facts},
            **{"b.png": png(), "b.txt": "text of\ntwo lines", "b.json": {"caption": "one", "alt": ["x", "y"]}},
            **{"c.png": png(), "c.json": {"caption": "one"}},
        },
    )
    assert rows(opened(index([tar], tmp_path / "t1"))) == {
        "a": ["first", "second"],
        "b": ["text of\ntwo lines"],
        "c": ["one"],
    }
    chosen = index([tar], tmp_path / "t2", caption_field="alt")
    assert rows(opened(chosen)) == {"a": ["alternative"], "b": ["x", "y"]}
    assert reasons(chosen) == {"c": "missing caption"}


def test_a_retrieval_set_of_clip_benchmark_has_a_caption_a_line_and_any_other_tar_one_text(tmp_path: Path) -> None:
    members: dict[str, Any] = {"a.png": png(), "a.txt": "one dog\n\na second dog\n"}
    for kind, captions in ((b"retrieval\n", ["one dog", "a second dog"]), (b"\xff", ["one dog a second dog"])):
        folder = tmp_path / f"set{len(captions)}"
        tar = write_tar(folder / "test" / "0.tar", members)
        (folder / "dataset_type.txt").write_bytes(kind)
        assert [text.split() for text in rows(opened(index([tar], folder / "table")))["a"]] == [
            text.split() for text in captions
        ]


def test_a_key_is_the_path_to_the_first_dot_and_only_neighbours_group(tmp_path: Path) -> None:
    members = [
        ("./train/x.y/k.PNG", png()),
        ("./train/x.y/k.txt", "deep"),
        ("./train/x.y/k.seg.png", png()),
        (".hidden", "x"),
        ("__readme__", "no dot"),
        ("a.png", png()),
        ("b.png", png()),
        ("b.txt", "bee"),
        ("a.txt", "too late"),
    ]
    summary = index([write_tar(tmp_path / "a.tar", members)], tmp_path / "table")
    assert rows(opened(summary)) == {"train/x.y/k": ["deep"], "b": ["bee"]}
    assert summary.skipped == {"missing caption": 1, "missing image": 1}


def test_labels_and_extra_fields_become_columns_of_their_type(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {
            **{"a.png": png(), "a.txt": "a", "a.json": {"label": 7, "style": "noto", "n": 1, "score": 1, "mixed": 1}},
            **{"b.png": png(), "b.txt": "b", "b.cls": "3", "b.json": {"n": 2, "score": 0.5, "mixed": "x"}},
            **{"c.png": png(), "c.txt": "c"},
        },
    )
    table = opened(index([tar], tmp_path / "table", extra_columns=["style", "n", "score", "mixed"]))
    assert list(table.numbers("label")) == [7, 3, -1]
    assert list(table.numbers("n")) == [1, 2, -1]
    np.testing.assert_array_equal(table.numbers("score"), [1, 0.5, np.nan])
    assert [table.strings("style")[row] for row in range(3)] == ["noto", "", ""]
    assert [table.strings("mixed")[row] for row in range(3)] == ["1", "x", ""]
    assert table.made["style"]["by"] == "index"


def test_every_bad_pair_of_a_tar_has_its_reason_and_the_good_ones_stay(tmp_path: Path) -> None:
    members = {
        **{"good.png": png(), "good.txt": "fine"},
        **{"noimage.txt": "x"},
        **{"notext.png": png()},
        **{"blank.png": png(), "blank.txt": " \n\0 "},
        **{"latin.png": png(), "latin.txt": "caf\xe9".encode("latin-1")},
        **{"surrogate.png": png(), "surrogate.json": '{"caption": "\\ud800"}'},
        **{"number.png": png(), "number.json": {"caption": 5}},
        **{"long.png": png(), "long.txt": "x" * 70_000},
        **{"huge.png": png(), "huge.txt": "x" * 1_000_000},
        **{"broken.png": b"<html>", "broken.txt": "x"},
        **{"short.jpg": jpeg()[:-90], "short.txt": "x"},
        **{"empty.png": b"", "empty.txt": "x"},
        **{"bomb.png": png(size=(400, 400)), "bomb.txt": "x"},
        **{"json.png": png(), "json.json": "{"},
        **{"deep.png": png(), "deep.json": "[" * 100_000},
        **{"list.png": png(), "list.json": "[1]"},
    }
    members_list = [*members.items(), ("good.png", png(9)), ("good.txt", "again")]
    summary = index([write_tar(tmp_path / "a.tar", members_list)], tmp_path / "table", max_pixels=100_000)
    assert rows(opened(summary)) == {"good": ["fine"]}
    assert summary.members == len(members_list)
    assert reasons(summary) == {
        "noimage": "missing image",
        "notext": "missing caption",
        "blank": "empty caption",
        "latin": "caption is not UTF-8",
        "surrogate": "caption is not UTF-8",
        "number": "caption is not text",
        "long": "caption too long",
        "huge": "caption too long",
        "broken": "unreadable image",
        "short": "unreadable image",
        "empty": "empty image",
        "bomb": "bomb-sized image",
        "json": "unreadable json",
        "deep": "unreadable json",
        "list": "unreadable json",
        "good": "duplicate key",
    }


def test_a_bad_part_costs_the_part_and_is_counted_as_such(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {
            **{"a.png": png(), "a.json": {"captions": ["ok", "", None]}},
            **{"b.png": png(), "b.txt": "b", "b.json": '{"label": 3'},
            **{"c.png": png(), "c.txt": "c", "c.cls": "dog"},
        },
    )
    summary = index([tar], tmp_path / "table")
    assert rows(opened(summary)) == {"a": ["ok"], "b": ["b"], "c": ["c"]}
    assert summary.skipped == {
        "empty caption (pair kept)": 1,
        "missing caption (pair kept)": 1,
        "unreadable json (pair kept)": 1,
        "unreadable label (pair kept)": 1,
    }


def test_a_truncated_tar_gives_what_came_before(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": "a", "b.png": png(), "b.txt": "b" * 900})
    with tar.open("r+b") as file:
        file.truncate(3584)
    other = write_tar(tmp_path / "b.tar", {"c.png": png(), "c.txt": "c"})
    summary = index([tar, other], tmp_path / "table")
    assert rows(opened(summary)) == {"a": ["a"], "c": ["c"]}
    assert summary.skipped == {"missing caption": 1, "truncated tar": 1}


def test_rows_number_on_across_sources_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "STREAM_ROWS", 4)
    for shard in range(3):
        members = {}
        for n in range(5):
            members |= {f"{shard}{n}.png": png(shard * 10 + n), f"{shard}{n}.txt": f"{shard}{n}"}
        write_tar(tmp_path / "shards" / f"{shard:03d}.tar", members | {"same.png": png(), "same.txt": "same"})
    summary = index([tmp_path / "shards" / "{001..002}.tar", tmp_path / "shards" / "*0.tar"], tmp_path / "table")
    table = opened(summary)
    expected = [f"1{n}" for n in range(5)] + ["same"] + [f"{s}{n}" for s in (2, 0) for n in range(5)]
    assert list(rows(table)) == expected
    assert list(table.numbers("row")) == list(range(16))
    assert summary.skipped == {"duplicate key": 2}
    assert table.image_bytes(15) == png(4)
    assert [table.source_path(int(s)).name for s in table.numbers("source")[[0, 6, 15]]] == [
        "001.tar",
        "002.tar",
        "000.tar",
    ]


def test_a_suffix_that_comes_again_begins_a_duplicate_not_a_mixture(tmp_path: Path) -> None:
    members = [("a.png", png(1)), ("a.txt", "first"), ("a.png", png(2)), ("a.txt", "second")]
    summary = index([write_tar(tmp_path / "a.tar", members)], tmp_path / "table")
    assert rows(opened(summary)) == {"a": ["first"]}
    assert opened(summary).image_bytes(0) == png(1)
    assert reasons(summary) == {"a": "duplicate key"}


def test_a_giant_member_is_named_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_IMAGE", 1000)
    monkeypatch.setattr(shards, "MAX_TEXT", 1000)
    big = bytes(1001)
    members = {"a.png": big, "a.txt": "a", "b.png": png(), "b.txt": big, "c.png": png(), "c.txt": "c"}
    summary = index([write_tar(tmp_path / "a.tar", members)], tmp_path / "table")
    assert reasons(summary) == {"a": "image file too large", "b": "caption too long"}
    assert summary.rows == 1


def test_verify_leaves_out_what_a_header_hides(tmp_path: Path) -> None:
    noise = Image.frombytes("L", (100, 100), np.random.default_rng(0).bytes(10_000))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    damaged = bytearray(buffer.getvalue())
    damaged[5000:5040] = bytes(40)
    tar = write_tar(tmp_path / "a.tar", {"a.png": bytes(damaged), "a.txt": "a", "b.png": png(), "b.txt": "b"})
    assert index([tar], tmp_path / "quick").rows == 2
    assert reasons(index([tar], tmp_path / "sure", verify=True)) == {"a": "unreadable image"}


def test_progress_counts_the_pairs_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "PROGRESS_PAIRS", 2)
    members = {f"{n}.{suffix}": png() if suffix == "png" else "x" for n in range(5) for suffix in ("png", "txt")}
    told: list[int] = []
    index([write_tar(tmp_path / "a.tar", members)], tmp_path / "table", progress=told.append)
    assert told == [2, 4, 5]


# -- folders and Karpathy's JSON -------------------------------------------------------------------------------------


def test_a_folder_takes_a_caption_a_line_else_the_name_of_the_sub_folder(tmp_path: Path) -> None:
    for name in ("photos/a.png", "photos/b.png", "top.png", "red_fox/2.png", "red_fox/1.png", "cat/1.png", ".no/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(png())
    (tmp_path / "in/photos/a.txt").write_text("first\n\nsecond\n")
    summary = index([tmp_path / "in"], tmp_path / "table")
    table = opened(summary)
    assert rows(table) == {
        "cat/1": ["cat"],
        "photos/a": ["first", "second"],
        "red_fox/1": ["red fox"],
        "red_fox/2": ["red fox"],
    }
    assert list(table.numbers("label")) == [0, -1, 1, 1]  # of cat, red_fox
    assert reasons(summary) == {"top": "missing caption", "photos/b": "missing caption"}
    assert table.image_bytes(3) == png()


def test_karpathys_json_gives_five_sentences_and_the_split(tmp_path: Path) -> None:
    (tmp_path / "root" / "val2014").mkdir(parents=True)
    (tmp_path / "root" / "val2014" / "COCO_1.jpg").write_bytes(jpeg())
    entries = [
        {"filepath": "val2014", "filename": "COCO_1.jpg", "imgid": 4, "split": "test"},
        {"filepath": "val2014", "filename": "COCO_2.jpg", "imgid": 5, "split": "train"},
        {"filename": "../../secret.jpg", "imgid": 6, "split": "train"},
    ]
    for entry in entries:
        entry["sentences"] = [{"raw": f"sentence {n}", "tokens": []} for n in range(5)]
    dataset = tmp_path / "dataset_coco.json"
    dataset.write_text(json.dumps({"images": [*entries, {"no": "name"}], "dataset": "coco"}))
    summary = index([dataset], tmp_path / "table", root=tmp_path / "root")
    table = opened(summary)
    assert rows(table) == {"COCO_1": [f"sentence {n}" for n in range(5)]}
    assert table.strings("split")[0] == "test"
    assert list(table.numbers("imgid")) == [4]
    assert sorted(summary.skipped) == ["missing file", "path outside root", "unreadable json"]


# -- what the user gets wrong ------------------------------------------------------------------------------------------


def test_a_kill_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "in" / "a.tar", {"a.png": png(), "a.txt": "a"})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        index([tar], tmp_path / "table")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_a_table_beside_its_sources_is_written_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "corpus" / "shards" / "0.tar", {"a.png": png(), "a.txt": "a"})
    index([tmp_path / "corpus" / "shards"], tmp_path / "corpus")
    assert sorted(os.listdir(tmp_path / "corpus")) == [
        "columns",
        "pairs.parquet",
        "shards",
        "skipped.jsonl",
        "table.json",
    ]
    with pytest.raises(UserError, match="not empty"):
        index([tmp_path / "corpus" / "shards"], tmp_path / "corpus")


def test_an_empty_out_is_used_and_a_full_one_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": "a"})
    (tmp_path / "empty").mkdir()
    assert index([tar], tmp_path / "empty").rows == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        index([tar], tmp_path / "full")


def test_nothing_usable_is_one_line_with_the_counts(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(), "b.png": png(), "c.txt": "c"})
    with pytest.raises(UserError, match=r"2 missing caption, 1 missing image"):
        index([tar], tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.tar", "no such source"),
        ("{0..2}.tar", "no such source: .*0.tar"),
        ("none-*.tar", "no such source"),
        ("https://example.org/a.tar", "remote"),
        ("s3://bucket/{0..9}.tar", "remote"),
        ("hollow", "holds no tars"),
        ("a.tar.gz", "unpack it first"),
        ("notes.md", "no known kind"),
        ("plain.json", "Karpathy"),
    ],
)
def test_a_source_that_is_none_is_a_user_error(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "hollow").mkdir()
    for name in ("a.tar.gz", "notes.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "plain.json").write_text("[]")
    with pytest.raises(UserError, match=words):
        index([source if "://" in source else str(tmp_path / source)], tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_a_pair_table_is_no_source(tmp_path: Path) -> None:
    index([write_tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": "a"})], tmp_path / "table")
    with pytest.raises(UserError, match="pair table already"):
        index([tmp_path / "table"], tmp_path / "again")


@pytest.mark.parametrize("name", ["../../evil", "sha", "label", "", "a/b"])
def test_an_extra_column_cannot_take_a_name_that_leads_out_or_is_taken(tmp_path: Path, name: str) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": "a"})
    with pytest.raises(UserError, match="extra column"):
        index([tar], tmp_path / "table", extra_columns=[name])


def test_a_full_disk_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "_save", full)
    with pytest.raises(UserError, match="No space left"):
        index([write_tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": "a"})], tmp_path / "table")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=2), max_size=12), max_size=8))
def test_a_key_is_new_exactly_once(blocks: list[list[str]]) -> None:
    seen, before = SeenKeys(), set()
    for block in blocks:
        expected = []
        for key in block:
            expected.append(key not in before)
            before.add(key)
        assert list(seen.are_new(block)) == expected
