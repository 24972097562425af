"""The captions a run wrote itself, as its page shows them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from truepair.pairs.table import PairTable
from truepair.report import run_report
from truepair.report.completion import completion
from truepair.report.record import read_run


@pytest.fixture
def completed(make_run: Callable[..., Path], table: PairTable) -> Path:
    """A run that wrote captions for every third of 60 pairs; one caption is hostile."""
    run = make_run(method="nlip")
    made = table.derive(run / "completed")
    written = [[f"written {row}"] if row % 3 == 0 else [] for row in range(len(table))]
    written[0] = ["<script>alert('written')</script>"]
    scores = np.where(np.arange(len(table)) % 3 == 0, 0.5, np.nan).astype(np.float32)
    made.add_column("synthetic", pa.array(written, pa.list_(pa.string())), {})
    made.add_column("synthetic_score", scores, {})
    made.add_column("synthetic_raw_score", scores - np.float32(0.2), {})
    made.add_column("synthetic_concepts", pa.array([["square", "shade"]] * len(table)), {})
    made.add_column("p_noise", np.where(np.arange(len(table)) < 30, 0.9, 0.1).astype(np.float32), {})
    return run


def test_ten_drawn_pairs_are_shown_with_what_stood_there_before(completed: Path) -> None:
    found = completion(read_run(completed), "nlip", 0)
    assert found is not None and len(found.pairs) == 10
    for pair in found.pairs:
        assert pair.row % 3 == 0 and pair.raw == [f"caption number {pair.row}"] and pair.before == []
        assert pair.concepts == ["square", "shade"] and (pair.score, pair.raw_score) == (0.5, pytest.approx(0.3))
        assert pair.picture.uri.startswith("data:image/jpeg") and pair.p_noise == pytest.approx(
            0.9 if pair.row < 30 else 0.1
        )
    said = " ".join(found.summary)
    assert "20 of 30 doubted pairs" in said and "0.50 against 0.30" in said
    assert completion(read_run(completed), "nlip", 0) == found  # the same pairs each time


def test_the_page_shows_them_escaped(completed: Path, tmp_path: Path) -> None:
    page = run_report([completed], tmp_path / "page.html").read_text()
    assert "Captions that nlip wrote itself" in page and "had: caption number" in page
    assert "<script>alert" not in page
    shown = completion(read_run(completed), "nlip", 0, count=99)
    assert shown is not None and len(shown.pairs) == 20 and "alert" in shown.pairs[0].synthetic


def test_a_run_that_wrote_none_has_no_such_part(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    assert completion(read_run(run), "clip", 0) is None
    assert "wrote itself" not in run_report([run], tmp_path / "page.html").read_text()


def test_a_damaged_table_is_a_note_not_an_error(completed: Path) -> None:
    made = json.loads((completed / "completed" / "table.json").read_text())
    (completed / "completed" / "columns" / "synthetic_score.parquet").write_bytes(b"no parquet")
    record = read_run(completed)
    assert made and completion(record, "nlip", 0) is None
    assert any(re.search("captions that the run wrote are not shown", note) for note in record.notes)
