"""A demo corpus as ready pair tables: OUT/train, OUT/test (or OUT/test/SET ...), with OUT/zeroshot beside them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from truepair.errors import UserError
from truepair.pairs.corpora import openclipart
from truepair.pairs.corpora.emoji import make_emoji
from truepair.pairs.corpora.icons import make_icons
from truepair.pairs.corpora.openclipart import make_openclipart
from truepair.pairs.corpora.scenes import make_scenes
from truepair.pairs.corpora.shards import CorpusSummary
from truepair.pairs.corpora.spreading import Progress, untold
from truepair.pairs.index import index
from truepair.pairs.table import PairTable

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


def join_tables(parts: Sequence[Path], out: Path, extra_columns: Sequence[str] = ("concept", "style")) -> PairTable:
    """One table `out` of the pairs of several corpora, whose folders of shards are `parts`.

    Its column `label` numbers the concepts of all, equal exactly where `concept` is, -1 for a pair without one: the
    corpora's own labels are each a numbering of its own. `extra_columns` are kept, `concept` must be among them. `out`
    appears when it is whole. Raises UserError if it is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already: remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        table = PairTable.open(index(parts, Path(temporary) / "joined", extra_columns=extra_columns).table)
        named = np.diff(table.strings("concept").ends, prepend=0) > 0
        label = np.where(named, table.groups("concept"), -1)
        table.add_column("label", label, {"by": "join_tables", "from": "concept"})
        table.path.replace(out)
    return PairTable.open(out)
