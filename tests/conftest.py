"""What every test stands on: one thread, no network, and a small corpus of scenes as pair tables."""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from truepair.pairs.corpora.scenes import make_scenes
from truepair.pairs.index import index

torch.set_num_threads(1)
settings.register_profile("same every time", derandomize=True, deadline=None, database=None)
settings.load_profile("same every time")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pair tables `train` (256 rows) and `test` (51 rows) of 32 px scenes; read it only.

    Each process of pytest-xdist makes its own, so nothing is shared and nothing needs a lock.
    """
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    make_scenes(folder, n=256, size=32)
    for part in ("train", "test"):
        index([folder / part / "shards"], folder / part)
    return folder


@pytest.fixture(scope="session")
def captioner_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny captioners on disk, as transformers saves them: "blip2" and "encoder-decoder"."""
    from captioners import save_blip2, save_encoder_decoder

    folder = tmp_path_factory.mktemp("captioners")
    save_blip2(folder / "blip2")
    save_encoder_decoder(folder / "encoder-decoder")
    return {name: folder / name for name in ("blip2", "encoder-decoder")}
