"""A corrupted table appears under its name when it is whole, or not at all."""

from pathlib import Path

import numpy as np
import pytest

from truepair.errors import UserError
from truepair.noise.tables import corrupt_table
from truepair.pairs.table import PairTable


@pytest.mark.parametrize("empty_folder", [False, True])
def test_a_corrupted_table_says_which_captions_moved(scenes: Path, tmp_path: Path, empty_folder: bool) -> None:
    clean, out = PairTable.open(scenes / "test"), tmp_path / "noisy"
    if empty_folder:
        out.mkdir()
    made = corrupt_table(clean, out, "shuffle", 0.5, seed=0)
    noisy = PairTable.open(out)
    assert (made.table, made.caption_column, made.rows) == (out, noisy.caption_column, len(clean))
    assert noisy.numbers("is_noise").mean() == pytest.approx(made.effective)
    sources = noisy.numbers("caption_from")
    assert [noisy.captions()[row] for row in range(made.rows)] == [clean.captions()[int(row)] for row in sources]
    assert noisy.image_bytes(3) == clean.image_bytes(3)
    assert [path.name for path in tmp_path.iterdir()] == ["noisy"]


@pytest.mark.parametrize("column", ["caption_shuffle", "is_noise", "caption_from"])
def test_an_interrupted_corruption_leaves_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    add_column = PairTable.add_column

    def interrupted(self: PairTable, name: str, values: np.ndarray, made: dict[str, object]) -> None:
        assert not (tmp_path / "noisy").exists()
        if name == column:
            raise KeyboardInterrupt
        add_column(self, name, values, made)

    monkeypatch.setattr(PairTable, "add_column", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corrupt_table(PairTable.open(scenes / "test"), tmp_path / "noisy", "shuffle", 0.5, seed=0)
    assert not list(tmp_path.iterdir())


def test_an_out_in_use_is_refused_before_the_work(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truepair.noise.tables.corrupt", lambda *_: pytest.fail("captions were corrupted"))
    (tmp_path / "file").write_text("mine")
    clean = PairTable.open(scenes / "test")
    for out, line in ((tmp_path, "not empty"), (tmp_path / "file", "is a file"), (tmp_path / "file" / "x", "cannot")):
        with pytest.raises(UserError, match=line) as error:
            corrupt_table(clean, out, "shuffle", 0.5, seed=0)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
