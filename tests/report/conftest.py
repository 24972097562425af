"""Run directories made by hand: a pair table of coloured squares and what a run over it would have written."""

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from truepair.config import RunConfig, to_toml
from truepair.noise import fit_losses
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PAIRS, SCHEMA, PairTable

PAIRS_OF_A_RUN = 60
MISMATCHED = np.arange(PAIRS_OF_A_RUN) % 3 == 0
SILENT = 7


def square(side: int, shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2 * side, side), (shade, 80, 160)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """A pair table of 60 images twice as wide as high; every third pair is mismatched."""
    path = tmp_path / "table"
    (path / "images").mkdir(parents=True)
    images = [square(20, 4 * row) for row in range(PAIRS_OF_A_RUN)]
    for row, image in enumerate(images):
        (path / "images" / f"{row}.png").write_bytes(image)
    values = {
        "row": range(PAIRS_OF_A_RUN),
        "key": [f"k{row}" for row in range(PAIRS_OF_A_RUN)],
        "source": [0] * PAIRS_OF_A_RUN,
        "offset": [-1] * PAIRS_OF_A_RUN,
        "size": [len(image) for image in images],
        "path": [f"{row}.png" for row in range(PAIRS_OF_A_RUN)],
        "caption": [[f"caption number {row}"] for row in range(PAIRS_OF_A_RUN)],
        "width": [40] * PAIRS_OF_A_RUN,
        "height": [20] * PAIRS_OF_A_RUN,
        "sha": [sha256(image).hexdigest()[:32] for image in images],
    }
    pq.write_table(pa.table({name: list(column) for name, column in values.items()}, schema=SCHEMA), path / PAIRS)
    made = PairTable(path, [])
    (path / "table.json").write_text(
        json.dumps(
            {
                "version": 1,
                "caption_column": "caption",
                "sources": [{"path": "images", "kind": "folder", "column": ""}],
                "made": {},
            }
        )
    )
    made = PairTable.open(path)
    made.add_column("is_noise", MISMATCHED, {})
    return made


@pytest.fixture
def make_run(tmp_path: Path, table: PairTable) -> Callable[..., Path]:
    """Writes a run directory over `table`: 40 steps in 4 epochs, with or without noise fits and evaluations.

    opinion: the method judges the pairs itself, from the first epoch on; pair 7 it never says anything of.
    """

    def make(
        name: str = "run", method: str = "clip", *, noise: bool = True, evals: int = 1, opinion: bool = False
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = RunConfig(data=str(table.path), out=str(folder), method=method, epochs=4, batch_size=16)
        (folder / "run.toml").write_text(to_toml(config))
        random = np.random.default_rng(len(name))
        losses = np.where(MISMATCHED, random.normal(5, 0.6, PAIRS_OF_A_RUN), random.normal(2, 0.5, PAIRS_OF_A_RUN))
        mixture = fit_losses(losses)
        lines: list[dict[str, Any]] = []
        for step in range(1, 41):
            figures = {"loss": 3 - step / 40, "lr": 1e-3, "scale": 14 + step / 40, "samples_per_s": 1000.0 + step}
            lines.append({"kind": "train", "step": step, "epoch": step / 10, **figures})
        known: dict[str, Any] = {"row": np.arange(PAIRS_OF_A_RUN), "loss": losses, "p_noise": losses * 0}
        if opinion:
            confidence = np.where(MISMATCHED, random.beta(1, 4, PAIRS_OF_A_RUN), random.beta(5, 1, PAIRS_OF_A_RUN))
            confidence[SILENT] = np.nan
            called = confidence < 0.3
            known |= {"confidence": confidence, "noisy": called}
            known["times_noisy"] = (called * random.integers(1, 9, PAIRS_OF_A_RUN)).astype(np.int32)
        for epoch in range(1, 5):
            line: dict[str, Any] = {"kind": "noise", "step": 10 * epoch, "epoch": epoch}
            if noise and epoch == 4:
                known["p_noise"] = mixture.posterior(losses)
                line |= {"mixture": mixture.to_dict(), "mean_p_noise": 0.33, "auroc": 0.97, "ece": 0.02}
            if opinion:
                line |= {"noisy_share": epoch / 16, "confidence_auroc": 0.7 + epoch / 20}
                line |= {"noisy_precision": 0.9, "noisy_recall": None if epoch < 2 else 0.2 * epoch}
            if len(line) > 3:
                lines.append(line)
                write_parquet(folder / "columns" / f"epoch-{epoch:04d}.parquet", known)
        for number in range(evals):
            figures = {"top1": 0.241 + number / 100, "top5": 0.5, "image_to_text_r1": 0.125}
            lines.append({"kind": "eval", "step": 40, "epoch": 4 - evals + 1 + number, **figures})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make
