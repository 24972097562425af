"""Subsets: rows by number, by DataComp's uids, by p_noise."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from truepair.errors import UserError
from truepair.pairs.index import index
from truepair.pairs.subset import UID, rows_in_use, uids, write_subset
from truepair.pairs.table import PairTable


@pytest.fixture
def table(scenes: Path, tmp_path: Path) -> PairTable:
    return PairTable.open(scenes / "train").derive(tmp_path / "table")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.integers(0, 255), min_size=1, max_size=40), ending=st.sampled_from([".parquet", ".npy"]))
def test_what_is_written_is_read(scenes: Path, tmp_path: Path, rows: set[int], ending: str) -> None:
    table, path = PairTable.open(scenes / "train"), tmp_path / f"keep{ending}"
    write_subset(table, np.array(list(rows)), path)
    assert rows_in_use(table, str(path)).tolist() == sorted(rows)


def test_uids_are_the_hash_of_the_image_in_datacomps_type(table: PairTable, tmp_path: Path) -> None:
    found = uids(table)
    assert found.dtype == UID == np.dtype("u8,u8") and len(np.unique(found)) == len(table)
    for row in (0, 17, 255):
        high, low = found[row]
        assert f"{int(high):016x}{int(low):016x}" == table.strings("sha")[row]
    write_subset(table, np.array([9, 3, 200]), tmp_path / "keep.npy")
    written = np.load(tmp_path / "keep.npy")
    assert (written == np.sort(written)).all() and set(written.tolist()) == set(found[[3, 9, 200]].tolist())


def test_rows_may_come_unsorted_and_twice(table: PairTable, tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [5, 2, 5, 9], "score": [0.1, 0.2, 0.3, 0.4]}), tmp_path / "keep.parquet")
    assert rows_in_use(table, str(tmp_path / "keep.parquet")).tolist() == [2, 5, 9]


def test_pairs_called_noisier_than_the_threshold_are_left_out(table: PairTable, tmp_path: Path) -> None:
    p_noise = np.linspace(0, 1, len(table), dtype=np.float32)
    table.add_column("p_noise", p_noise, {})
    assert rows_in_use(table, "", 0.25).tolist() == np.flatnonzero(p_noise <= 0.25).tolist()
    write_subset(table, np.array([1, 2, 250]), tmp_path / "keep.parquet")
    assert rows_in_use(table, str(tmp_path / "keep.parquet"), 0.5).tolist() == [1, 2]
    assert rows_in_use(table, "", 1.0).tolist() == list(range(256))


def test_a_row_the_table_does_not_have_is_said(table: PairTable, tmp_path: Path) -> None:
    for row in (256, -1):
        pq.write_table(pa.table({"row": [3, row]}), tmp_path / "keep.parquet")
        with pytest.raises(UserError, match=f"names row {row}, .* has rows 0 to 255"):
            rows_in_use(table, str(tmp_path / "keep.parquet"))


def test_files_that_are_no_subsets_are_said(table: PairTable, tmp_path: Path) -> None:
    pq.write_table(pa.table({"line": [3]}), tmp_path / "lines.parquet")
    np.save(tmp_path / "numbers.npy", np.arange(3))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"row": ["three"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"row": [1.0, 2.5]}), tmp_path / "floats.parquet")
    pq.write_table(pa.table({"row": [1, None]}), tmp_path / "nulls.parquet")
    pq.write_table(pa.table({"row": pa.array([1, 2**64 - 1], pa.uint64())}), tmp_path / "huge.parquet")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "zipped.npz", np.arange(3))
    (tmp_path / "zipped.npz").rename(tmp_path / "zipped.npy")
    names = {path.name for path in tmp_path.iterdir() if path.is_file()} | {"absent.parquet", "absent.npy"}
    assert len(names) == 12
    for name in names:
        with pytest.raises(UserError, match=name) as error:
            rows_in_use(table, str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_what_arrow_says_in_several_lines_is_quoted_by_its_first(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowInvalid("torn page\nDetail: line 2")

    monkeypatch.setattr(pq, "read_table", fail)
    with pytest.raises(UserError, match=r"torn page$"):
        rows_in_use(table, str(tmp_path / "keep.parquet"))


def test_a_filter_that_leaves_nothing_is_said(table: PairTable, tmp_path: Path) -> None:
    np.save(tmp_path / "keep.npy", np.zeros(2, UID))
    with pytest.raises(UserError, match=r"no pair of .* is left to use"):
        rows_in_use(table, str(tmp_path / "keep.npy"))
    with pytest.raises(UserError, match="no column 'p_noise'"):
        rows_in_use(table, "", 0.5)


def test_a_uid_kept_from_the_metadata_takes_the_place_of_the_hash(tmp_path: Path) -> None:
    """Shards as DataComp's downloader writes them; the subset as its filters do, from the hexadecimal text."""
    names = [f"{row:04x}{'Ab' * 14}" for row in (7, 1, 9)]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar, io.BytesIO() as png:
        Image.new("RGB", (4, 4)).save(png, "PNG")
        for row, uid in enumerate(names):
            files = {"png": png.getvalue(), "txt": b"a dot", "json": json.dumps({"uid": uid}).encode()}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{row}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    index([tmp_path / "shards"], tmp_path / "table", extra_columns=["uid"])
    table = PairTable.open(tmp_path / "table")
    assert [f"{int(high):016x}{int(low):016x}" for high, low in uids(table)] == [name.lower() for name in names]
    wanted = [(int(name[:16], 16), int(name[16:32], 16)) for name in (names[2], names[0])]
    np.save(tmp_path / "keep.npy", np.array(wanted, np.dtype("u8,u8")))
    assert rows_in_use(table, str(tmp_path / "keep.npy")).tolist() == [0, 2]


@pytest.mark.parametrize("wrong", ["", "0" * 31, "0" * 33, "g" * 32, "0" * 30 + "é", " " * 32])
def test_a_uid_that_is_not_32_digits_is_named(table: PairTable, wrong: str) -> None:
    table.add_column("uid", [wrong if row == 5 else "0" * 32 for row in range(256)], {})
    with pytest.raises(UserError, match=r"row 5 of .* 32 hexadecimal digits"):
        uids(table)


def test_uids_that_are_numbers_are_refused(table: PairTable) -> None:
    table.add_column("uid", np.arange(256), {})
    with pytest.raises(UserError, match=r"'uid' of .* does not hold strings"):
        uids(table)
