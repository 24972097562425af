"""Subsets: rows by number, by DataComp's uids, by p_noise."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
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
    for name in ("lines.parquet", "numbers.npy", "pickled.npy", "torn.parquet", "text.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name):
            rows_in_use(table, str(tmp_path / name))


def test_a_filter_that_leaves_nothing_is_said(table: PairTable, tmp_path: Path) -> None:
    np.save(tmp_path / "keep.npy", np.zeros(2, UID))
    with pytest.raises(UserError, match=r"no pair of .* is left to use"):
        rows_in_use(table, str(tmp_path / "keep.npy"))
    with pytest.raises(UserError, match="no column 'p_noise'"):
        rows_in_use(table, "", 0.5)
