"""labels.csv as strangers make it: read right, or refused with line and remedy; nothing passed over in silence."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.noise.labels import Labels, read_labels

HOSTILE = [
    "plain",
    "a,b",
    'say "so"',
    "two\nlines",
    "crlf\r\nwithin",
    "=cmd|'/c calc'!A1",
    "日本 \u202e🙂",
    " spaced ",
    "007",
]


def keys_of(names: list[str]):  # type: ignore[no-untyped-def]
    def keys(rows: NDArray[np.int64]) -> list[str]:
        return [names[row] for row in rows]

    return keys


def file_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_lists(labels: Labels) -> tuple[list[int], list[bool], list[int]]:
    return labels.rows.tolist(), labels.noisy.tolist(), labels.unsure.tolist()


def test_a_page_s_download_is_read_whole(tmp_path: Path) -> None:
    labels = read_labels(
        file_of(tmp_path, "row,key,label\n4,e,mismatch\n0,a,keep\n2,c,unsure\n"), 5, keys_of([*"abcde"])
    )
    assert as_lists(labels) == ([0, 4], [False, True], [2])
    assert labels.told == ()
    assert (labels.rows.dtype, labels.noisy.dtype, labels.unsure.dtype) == (np.int64, np.bool_, np.int64)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.integers(0, 8), st.sampled_from(["keep", "mismatch", "unsure"]), min_size=1),
    st.permutations(["row", "key", "label", "caption"]),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_what_any_csv_writer_wrote_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    verdicts: dict[int, str],
    order: list[str],
    delimiter: str,
    ending: str,
    mark: bool,
    quoted: bool,
) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, order, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    for row, label in verdicts.items():
        writer.writerow({"row": row, "key": HOSTILE[row], "label": label, "caption": HOSTILE[-row]})
    path = file_of(tmp_path_factory.mktemp("csv"), ("\ufeff" if mark else "") + text.getvalue())
    decided = sorted(row for row, label in verdicts.items() if label != "unsure")
    expected = decided, [verdicts[row] == "mismatch" for row in decided]
    labels = read_labels(path, len(HOSTILE), keys_of(HOSTILE))
    assert as_lists(labels) == (*expected, sorted(verdicts.keys() - set(decided)))
    assert labels.told == ("1 column besides row, key and label: ignored",)


def test_all_that_does_not_count_is_told_with_its_number(tmp_path: Path) -> None:
    content = (
        " Row ,LABEL,note,key\n3, Keep ,,\n\n1,mismatch,x,b\n,,,\n2,,later,c\n3,unsure,,d\n3,MISMATCH,,\n1,keep,,b,,\n"
    )
    labels = read_labels(file_of(tmp_path, content), 4, keys_of([*"abcd"]))
    assert as_lists(labels) == ([1, 3], [False, True], [])
    assert labels.told == (
        "3 labels overruled by a later one of the same row",
        "1 line without a label: not judged yet",
        "2 blank lines passed over",
        "2 labels without a key: taken by row number alone",
        "1 column besides row, key and label: ignored",
    )


def test_the_columns_that_the_page_writes_are_not_told(tmp_path: Path) -> None:
    content = "row,key,label,p_noise,stratum\n1,b,keep,0.25,3\n"
    assert read_labels(file_of(tmp_path, content), 2, keys_of([*"ab"])).told == ()


def test_without_a_key_column_rows_are_taken_at_their_word_and_that_is_told(tmp_path: Path) -> None:
    path = file_of(tmp_path, "row,label\n1,keep\n")
    assert read_labels(path, 2, keys_of(["a", "b"])).told == ("1 label without a key: taken by row number alone",)
    assert read_labels(path, 2).told == ()


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "line 1: the header names no column row"),
        ("\n\n", "line 1: the header names no column row"),
        ("0,a,keep\n", "line 1: the header names no column row"),
        ("row,key\n0,a\n", "line 1: the header names no column label"),
        ("row,row,label\n0,1,keep\n", "line 1: the header names the column row twice"),
        ("row,key,label,key\n0,a,keep,b\n", "line 1: the header names the column key twice"),
        ("row,key,label\n", "holds no label: mark pairs"),
        ("row,key,label\n0,a,\n\n", "holds no label: mark pairs"),
        ("row,key,label\n0,a,keep\n1,b,maybe\n", "line 3: unknown label 'maybe': it must be keep, mismatch, unsure"),
        ("row,key,label\n0,a,ke\x1b[31m\n", r"line 2: unknown label 'ke\x1b[31m'"),
        ("row,key,label\n5,a,keep\n", "line 2: there is no row 5: the table has rows 0 to 4"),
        ("row,key,label\n-1,a,keep\n", "line 2: '-1' is no row number"),
        ("row,key,label\n1.0,b,keep\n", "line 2: '1.0' is no row number"),
        ("row,key,label\n1_0,b,keep\n", "line 2: '1_0' is no row number"),
        ("row,key,label\n١,b,keep\n", "is no row number"),
        ("row,key,label\n" + "9" * 5000 + ",b,keep\n", "line 2: '9999"),
        ("row,key,label\n,b,keep\n", "line 2: '' is no row number"),
        ("row,key,label\n1,b\n", "line 2: the line ends before its row or label"),
        ("row,key,label\n1,b,c,keep\n", "line 2: 4 cells under a header of 3"),
        ("row,key,label\n1,a,keep\n", "line 2: row 1 of the table has the key 'b', not 'a'"),
        ('row,key,label\n0,a,keep\n1,"b,keep\n2,c,keep\n', "line 3: not CSV"),
        ('row,key,label\n0,a,keep\n1,"b"c,keep\n', "line 3: not CSV"),
        ('row,key,label\n0,"a\n\n\n",keep\n', "line 2: row 0 of the table has the key 'a', not 'a\\n\\n\\n'"),
        ('row,key,label,note\n0,a,keep,"1\n2\n3"\n1,b,no,\n', "line 5: unknown label 'no'"),
        ("row,key,label\n0," + "k" * 200_000 + ",keep\n", "line 2: not CSV (field larger"),
        ("row,key,label\n" + "1" * (1 << 20) + "\n", "line 2: longer than 1,048,576 characters"),
        ("row,key,label," + "x" * 70_000 + "\n", "line 1: longer than 65,536 characters"),
        ("row,key,label\n0,a,keep\n".encode("utf-16"), "is not text in UTF-8"),
        ("row,key,label\n0,a,keep\n".encode("utf-16-be"), "is not text in UTF-8"),
        ("row,key,label\n0,é,keep\n".encode("latin-1"), r"has the key 'a', not '\udce9'"),
        (b"row,key,label\n0,a,ke\xffp\n", r"line 2: unknown label 'ke\udcffp'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "line 1: the header names no column row"),
    ],
)
def test_a_fault_is_named_by_its_line_and_what_is_wrong(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(UserError) as raised:
        read_labels(file_of(tmp_path, content), 5, keys_of([*"abcde"]))
    message = str(raised.value)
    assert says in message and "labels.csv" in message
    assert "\n" not in message and "\x1b" not in message and len(message) < 500
    message.encode()  # bytes that are no UTF-8 do not reach the terminal


def test_bytes_that_are_no_utf_8_harm_nothing_in_a_column_that_is_not_read(tmp_path: Path) -> None:
    labels = read_labels(file_of(tmp_path, b"row,key,label,note\n0,a,keep,caf\xe9\n"), 1, keys_of(["a"]))
    assert as_lists(labels) == ([0], [False], [])


def test_a_file_that_cannot_be_read_is_an_error_of_the_user(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_labels(path, 3)


def test_keys_are_compared_in_batches_and_a_wrong_one_is_found_in_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = 100
    monkeypatch.setattr("truepair.noise.labels.BATCH", batch)
    n = 2 * batch + 10
    asked: list[int] = []

    def keys(rows: NDArray[np.int64]) -> list[str]:
        asked.append(len(rows))
        return [f"k{row}" for row in rows]

    lines = [f"{row},k{row},{'keep' if row % 3 else 'mismatch'}" for row in range(n)]
    labels = read_labels(file_of(tmp_path, "\n".join(["row,key,label", *lines])), n, keys)
    assert asked == [batch, batch, 10]
    assert (labels.rows == np.arange(n)).all() and (labels.noisy == (np.arange(n) % 3 == 0)).all()
    lines[batch + 5] = f"{batch + 5},wrong,keep"
    with pytest.raises(UserError, match=rf"line {batch + 7}: row {batch + 5} of the table has the key"):
        read_labels(file_of(tmp_path, "\n".join(["row,key,label", *lines])), n, keys)


def test_labels_outside_the_drawn_sample_are_set_aside_and_told() -> None:
    labels = Labels(np.array([1, 4, 7]), np.array([True, False, True]), np.array([2, 9]), ("before",))
    kept = labels.among(np.array([9, 7, 4, 3]))
    assert as_lists(kept) == ([4, 7], [False, True], [9])
    assert kept.told[0] == "before" and kept.told[1].startswith("2 labels outside the drawn sample")
    assert labels.among(np.arange(10)).told == ("before",)
