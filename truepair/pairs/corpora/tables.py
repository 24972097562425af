"""A demo corpus as ready pair tables: OUT/train and OUT/test, with OUT/zeroshot beside them."""

from pathlib import Path
from typing import Literal

from truepair.pairs.corpora.emoji import make_emoji
from truepair.pairs.corpora.scenes import make_scenes
from truepair.pairs.corpora.shards import CorpusSummary
from truepair.pairs.index import index

Corpus = Literal["emoji", "scenes"]


def make_tables(name: Corpus, out: Path, *, n: int = 2000, seed: int = 0, size: int = 64) -> CorpusSummary:
    """Make corpus `name` under `out` and index it. What is there already is left as it is.

    n: training pairs (scenes). size: pixels. Raises `CorpusUnavailable` if emoji cannot be fetched (offline, no npm).
    """
    if name == "emoji":
        summary = make_emoji(out, size=size, seed=seed, workers=2)
    else:
        summary = make_scenes(out, n=n, seed=seed, size=size)
    for part in ("train", "test"):
        if not (out / part / "table.json").exists():
            index([out / part / "shards"], out / part, extra_columns=("concept", "style"))
    return summary
