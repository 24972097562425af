"""Synthetic captions of a table's column reach the method: behind a raw one, for every row that has any caption."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from truepair.config import PairsConfig, RunConfig
from truepair.methods.base import Pairs
from truepair.pairs.table import PairTable
from truepair.pairs.text import caption_ids
from truepair.train import loop, train


def test_rows_with_a_caption_of_either_kind_are_trained_on_with_both(
    run_config: Callable[..., RunConfig], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PairTable.open(scenes / "train").derive(tmp_path / "table")
    raw = [[f"raw {row}"] if row % 4 < 2 else [] for row in range(256)]
    written = [[f"written {row}"] if row % 4 in (1, 2) else [] for row in range(256)]  # neither for the last quarter
    for name, texts in (("caption_raw", raw), ("written", written)):
        table.add_column(name, pa.array(texts, pa.list_(pa.string())), {})
    seen: list[Pairs] = []
    monkeypatch.setattr(loop, "Pairs", lambda *known, **more: seen.append(Pairs(*known, **more)) or seen[-1])
    pairs = PairsConfig(caption_column="caption_raw", synthetic="written", captions=2)
    assert train(run_config(epochs=1, data=str(table.path), pairs=pairs)).steps == 192 // 32
    rows = torch.cat([known.rows for known in seen]).tolist()
    assert sorted(rows) == [row for row in range(256) if row % 4 < 3]
    wanted = [((raw[row] or written[row])[0], (written[row] or raw[row])[0]) for row in rows]
    ids = torch.cat([known.captions for known in seen])
    assert torch.equal(ids, caption_ids([text for texts in wanted for text in texts]))
