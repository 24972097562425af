"""A column read back through memory maps equals the Python values it was made from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truepair.errors import UserError
from truepair.pairs import columns
from truepair.pairs.columns import StringLists, Strings, codes, open_column, stream_parquet, write_parquet

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(lists=st.lists(st.lists(TEXT, max_size=4), max_size=20), block=st.integers(1, 7))
def test_string_lists_equal_python_lists_whatever_the_blocks(
    tmp_path: Path, lists: list[list[str]], block: int
) -> None:
    file = tmp_path / f"{abs(hash((str(lists), block)))}.parquet"
    array = pa.array(lists, pa.list_(pa.string()))
    pq.write_table(pa.table({"caption": array}), file, row_group_size=block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "STREAM_ROWS", block)
        column = open_column(file, "caption")
    assert isinstance(column, StringLists)
    assert [column[row] for row in range(len(column))] == lists


@QUICK
@given(texts=st.lists(TEXT | st.none(), max_size=20), block=st.integers(1, 7))
def test_strings_equal_python_strings_and_null_is_empty(tmp_path: Path, texts: list[str | None], block: int) -> None:
    file = tmp_path / f"{abs(hash((str(texts), block)))}.parquet"
    pq.write_table(pa.table({"t": pa.array(texts, pa.string())}), file, row_group_size=block)
    column = open_column(file, "t")
    assert isinstance(column, Strings)
    assert [column[row] for row in range(len(column))] == [text or "" for text in texts]


def test_null_lists_are_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": pa.array([["a"], None, [], ["b", "c"]])}), tmp_path / "c.parquet")
    column = open_column(tmp_path / "c.parquet", "c")
    assert [column[row] for row in range(4)] == [["a"], [], [], ["b", "c"]]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(10),
        np.linspace(0, 1, 10, dtype=np.float32),
        np.arange(10) % 2 == 0,
        np.arange(30, dtype=np.float16).reshape(10, 3),
        np.arange(60, dtype=np.float16).reshape(10, 2, 3)[::-1],
        np.arange(240).reshape(10, 2, 3, 4) % 5 == 0,
        np.zeros(0, np.int64),
    ],
)
def test_arrays_come_back_with_their_shape_and_type(tmp_path: Path, values: np.ndarray) -> None:
    write_parquet(tmp_path / "v.parquet", {"v": values})
    column = open_column(tmp_path / "v.parquet", "v")
    assert column.dtype == values.dtype
    np.testing.assert_array_equal(column, values)


@QUICK
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), nested=st.booleans(), wide=st.booleans())
def test_a_column_streamed_in_pieces_equals_one_written_whole(
    tmp_path: Path, sizes: list[int], nested: bool, wide: bool
) -> None:
    n = sum(sizes)
    values = np.random.default_rng(n).normal(size=(n, 3, 2) if nested else (n, 6)).astype(np.float16)
    pieces = np.split(values, np.cumsum(sizes)[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "STREAM_BYTES", 100 if wide else 1 << 20)  # two rows at a time
        file = tmp_path / f"{sizes}{nested}{wide}.parquet"
        stream_parquet(file, "v", iter(pieces), n)
        np.testing.assert_array_equal(open_column(file, "v"), values)
        assert pq.read_metadata(file).num_row_groups >= (n // 2 if wide else 0)
    assert pq.read_table(file).column("v").to_pylist() == values.tolist()


def test_pieces_may_be_arrow_arrays_and_take_the_type_of_the_first(tmp_path: Path) -> None:
    kind = pa.list_(pa.string())
    pieces = [pa.array([["a"], []], kind), pa.array([[], []]), pa.chunked_array([[["b", "c"]]], kind)]
    stream_parquet(tmp_path / "l.parquet", "l", iter(pieces), 5)
    column = open_column(tmp_path / "l.parquet", "l")
    assert [column[row] for row in range(5)] == [["a"], [], [], [], ["b", "c"]]


def test_pieces_of_the_wrong_length_or_type_leave_nothing_behind(tmp_path: Path) -> None:
    for pieces in ([np.arange(3)], [], [np.arange(2), np.arange(3)], [np.arange(2), pa.array(["a", "b"])]):
        with pytest.raises(ValueError):
            stream_parquet(tmp_path / "v.parquet", "v", iter(pieces), 4)
    assert not list(tmp_path.iterdir())


def test_a_column_of_a_kind_that_cannot_be_mapped_is_a_user_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "v.parquet", {"v": pa.array([[[1.0]], []])})
    with pytest.raises(UserError, match="cannot be mapped"):
        open_column(tmp_path / "v.parquet", "v")


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "v.parquet"
    write_parquet(file, {"v": np.arange(5)})
    open_column(file, "v")
    write_parquet(file, {"v": np.arange(5) * 2.5})
    np.testing.assert_array_equal(open_column(file, "v"), np.arange(5) * 2.5)


def test_a_folder_that_cannot_be_written_uses_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "t" / "v.parquet", {"v": np.arange(5)})
    build = columns._build

    def refuse_nearby(parquet: Path, field: str, folder: Path) -> None:
        if folder.is_relative_to(tmp_path / "t"):
            raise PermissionError(13, "read only")
        build(parquet, field, folder)

    monkeypatch.setattr(columns, "_build", refuse_nearby)
    monkeypatch.setattr(columns.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    np.testing.assert_array_equal(open_column(tmp_path / "t" / "v.parquet", "v"), np.arange(5))
    assert not (tmp_path / "t" / ".mmap").exists()


def test_an_absent_field_is_a_user_error_that_names_the_present_ones(tmp_path: Path) -> None:
    write_parquet(tmp_path / "v.parquet", {"here": [1]})
    with pytest.raises(UserError, match="here"):
        open_column(tmp_path / "v.parquet", "gone")


def test_codes_are_equal_exactly_where_values_are(tmp_path: Path) -> None:
    texts = [f"t{n % 7}" for n in range(50)]
    lists = [[t, "x"] if n % 2 else [t] for n, t in enumerate(texts)]
    pq.write_table(pa.table({"t": texts, "l": lists}), tmp_path / "c.parquet", row_group_size=9)
    for name, values in (("t", texts), ("l", [tuple(v) for v in lists])):
        found = codes(tmp_path / "c.parquet", name)
        assert [[a == b for b in found] for a in found] == [[a == b for b in values] for a in values]
