"""A demo corpus as ready pair tables: OUT/train, OUT/test (or OUT/test/SET ...), with OUT/zeroshot beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from truepair.pairs.corpora import openclipart
from truepair.pairs.corpora.emoji import make_emoji
from truepair.pairs.corpora.icons import make_icons
from truepair.pairs.corpora.openclipart import make_openclipart
from truepair.pairs.corpora.scenes import make_scenes
from truepair.pairs.corpora.shards import CorpusSummary
from truepair.pairs.corpora.spreading import Progress, untold
from truepair.pairs.index import index

Corpus = Literal["emoji", "icons", "openclipart", "scenes"]
COLUMNS: dict[Corpus, tuple[str, ...]] = {
    "emoji": ("concept", "style"),
    "icons": ("concept", "style", "icon"),
    "openclipart": openclipart.COLUMNS,
    "scenes": ("concept", "style"),
}
WORKERS = 2


def make_tables(
    name: Corpus,
    out: Path,
    *,
    n: int = 2000,
    seed: int = 0,
    size: int = 64,
    debs: Sequence[Path] = (),
    progress: Progress = untold,
) -> CorpusSummary:
    """Make corpus `name` under `out` and index it. What is there already is left as it is.

    n: training pairs (scenes). size: pixels. debs: the packages of openclipart, where apt is missing. `progress` is
    told how many of how many pictures are drawn (icons, openclipart). Raises `CorpusUnavailable` if a corpus cannot be
    fetched (offline, no npm, no apt-get).
    """
    match name:
        case "emoji":
            summary = make_emoji(out, size=size, seed=seed, workers=WORKERS)
        case "icons":
            summary = make_icons(out, size=size, seed=seed, workers=WORKERS, progress=progress)
        case "openclipart":
            summary = make_openclipart(out, size=size, seed=seed, debs=debs, workers=WORKERS, progress=progress)
        case "scenes":
            summary = make_scenes(out, n=n, seed=seed, size=size)
    for shards in sorted([*out.glob("*/shards"), *out.glob("test/*/shards")]):
        if not (shards.parent / "table.json").exists():
            index([shards], shards.parent, extra_columns=COLUMNS[name])
    return summary
