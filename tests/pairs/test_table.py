"""A pair table can be moved, derived and extended, and gives the bytes of an image wherever they lie."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from truepair.errors import UserError
from truepair.pairs.index import index
from truepair.pairs.table import PAIRS, PairTable

IMAGES = []
for shade in range(12):
    with io.BytesIO() as buffer:
        Image.new("RGB", (4 + shade, 5), (20 * shade, 0, 0)).save(buffer, "PNG")
        IMAGES.append(buffer.getvalue())


def write_tar(path: Path, count: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for suffix, data in (("png", IMAGES[number]), ("txt", f"shade {number}".encode())):
                info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    write_tar(tmp_path / "corpus" / "shards" / "0.tar")
    index([tmp_path / "corpus" / "shards"], tmp_path / "corpus")
    return PairTable.open(tmp_path / "corpus")


def all_bytes(table: PairTable) -> list[bytes]:
    return [table.image_bytes(row) for row in range(len(table))]


def test_a_table_beside_its_shards_can_be_moved_with_them(table: PairTable, tmp_path: Path) -> None:
    assert not Path(table.sources[0].path).is_absolute()
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    assert all_bytes(PairTable.open(tmp_path / "elsewhere")) == IMAGES


def test_a_table_apart_from_its_shards_can_be_moved_without_them(tmp_path: Path) -> None:
    index([write_tar(tmp_path / "0.tar")], tmp_path / "t" / "table")
    (tmp_path / "t").rename(tmp_path / "u")
    assert all_bytes(PairTable.open(tmp_path / "u" / "table")) == IMAGES


def test_a_derived_table_has_rows_columns_and_images_and_is_its_own(table: PairTable, tmp_path: Path) -> None:
    table.add_column("score", np.arange(12.0), {"by": "test"})
    derived = table.derive(tmp_path / "deep" / "derived")
    derived.add_column("score", np.zeros(12), {"by": "other"})
    again = PairTable.open(tmp_path / "deep" / "derived")
    assert all_bytes(again) == IMAGES
    assert again.made["score"] == {"by": "other"}
    assert again.captions()[3] == ["shade 3"]
    np.testing.assert_array_equal(again.numbers("score"), np.zeros(12))
    np.testing.assert_array_equal(PairTable.open(table.path).numbers("score"), np.arange(12.0))


@pytest.mark.parametrize("whole", [True, False])
def test_tables_may_share_the_files_of_columns_until_one_of_them_gets_its_own(
    table: PairTable, tmp_path: Path, whole: bool
) -> None:
    table.add_column("score", np.arange(12.0), {})
    derived = table.derive(tmp_path / "derived", share=True)
    files = [t.path / "columns" / "score.parquet" for t in (table, derived)]
    assert files[0].samefile(files[1]) and (table.path / PAIRS).samefile(derived.path / PAIRS)
    assert not (table.path / "table.json").samefile(derived.path / "table.json")
    for changed, other in ((0, 1), (1, 0)):
        before = files[other].read_bytes()
        (table, derived)[changed].add_column("score", np.full(12, 7.0) if whole else iter([np.full(12, 7.0)]), {})
        assert files[other].read_bytes() == before and not files[0].samefile(files[1])


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM])
def test_where_files_cannot_be_shared_they_are_copied(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refused)
    derived = table.derive(tmp_path / "derived", share=True)
    assert all_bytes(derived) == IMAGES and not (table.path / PAIRS).samefile(derived.path / PAIRS)


def test_a_column_that_is_a_symbolic_link_is_shared_not_the_link(table: PairTable, tmp_path: Path) -> None:
    table.add_column("score", np.arange(12.0), {})
    file = table.path / "columns" / "score.parquet"
    file.rename(tmp_path / "kept.parquet")
    file.symlink_to(Path("..") / ".." / "kept.parquet")
    table.derive(tmp_path / "deep" / "derived", share=True)
    again = PairTable.open(tmp_path / "deep" / "derived")
    np.testing.assert_array_equal(again.numbers("score"), np.arange(12.0))


def test_a_table_can_read_the_images_where_another_finds_them(table: PairTable, tmp_path: Path) -> None:
    derived = table.derive(tmp_path / "derived")
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    moved = PairTable.open(tmp_path / "elsewhere")
    assert all_bytes(derived.reading_images_of(moved)) == IMAGES
    with pytest.raises(FileNotFoundError):
        PairTable.open(tmp_path / "derived").image_bytes(0)


def test_deriving_onto_something_is_refused(table: PairTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        table.derive(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        table.derive(tmp_path / "file")


def test_a_derived_table_is_whole_or_not_there(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    derived = table.derive(tmp_path / "new")
    assert derived.path == tmp_path / "new" and all_bytes(derived) == IMAGES

    def interrupted(self: PairTable) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PairTable, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.derive(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "new"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_bytes_inside_a_parquet_are_read_at_random(tmp_path: Path, wrapped: bool) -> None:
    images = [{"bytes": data, "path": None} for data in IMAGES] if wrapped else IMAGES
    texts = [f"shade {n}" for n in range(12)]
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "a.parquet", row_group_size=5)
    index([tmp_path / "a.parquet"], tmp_path / "table")
    table = PairTable.open(tmp_path / "table")
    for row in np.random.default_rng(0).permutation(12):
        assert table.image_bytes(int(row)) == IMAGES[row]


def test_a_source_that_shrank_is_said_not_fed(table: PairTable) -> None:
    path = table.source_path(0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match="changed since it was indexed"):
        PairTable.open(table.path).image_bytes(11)


def test_groups_are_equal_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate([IMAGES[0], IMAGES[1], IMAGES[0]]):
        (folder / f"{number}.png").write_bytes(image)
        (folder / f"{number}.txt").write_text(f"text {number}")
    index([folder], tmp_path / "table")
    first, second, third = PairTable.open(tmp_path / "table").groups("sha")
    assert first == third != second


def test_columns_of_the_index_and_of_wrong_length_are_refused(table: PairTable) -> None:
    with pytest.raises(UserError, match="belongs to the index"):
        table.add_column("sha", ["x"] * 12, {})
    with pytest.raises(ValueError, match="3 values for 12 rows"):
        table.add_column("score", [1, 2, 3], {})


def test_a_column_may_come_in_pieces(table: PairTable) -> None:
    table.add_column("features", (np.full((6, 2, 3), n, np.float16) for n in range(2)), {"by": "test"})
    again = PairTable.open(table.path)
    assert again.numbers("features").shape == (12, 2, 3) and again.made["features"] == {"by": "test"}
    with pytest.raises(ValueError, match="6 values for 12 rows"):
        table.add_column("features", iter([np.zeros(6)]), {})
    np.testing.assert_array_equal(PairTable.open(table.path).numbers("features"), again.numbers("features"))


def test_asking_for_the_wrong_kind_of_column_is_a_user_error(table: PairTable) -> None:
    with pytest.raises(UserError, match="numbers are needed"):
        table.numbers("key")
    with pytest.raises(UserError, match="does not hold strings"):
        table.strings("size")
    with pytest.raises(UserError, match="lists of captions"):
        table.captions("key")
    with pytest.raises(UserError, match="no column 'p_noise'; it has row, key"):
        table.numbers("p_noise")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not a pair table"),
        ("{", "cannot be read"),
        ('{"version": 1}', "cannot be read"),
        (json.dumps({"version": 99, "sources": []}), "version 99"),
        (json.dumps({"version": 1, "sources": [], "caption_column": "caption", "made": {}}), "index it again"),
    ],
)
def test_what_is_no_table_is_a_user_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "table.json").write_text(content)
    with pytest.raises(UserError, match=words):
        PairTable.open(tmp_path)
