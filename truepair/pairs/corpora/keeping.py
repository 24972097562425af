"""A corpus made once: copied from the cache where it lies finished, else made there first, never half there."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from truepair.pairs.corpora.packages import CorpusUnavailable
from truepair.pairs.corpora.shards import CorpusSummary, read_note, staged, write_note

Sources = TypeVar("Sources")


def kept_corpus(
    out: Path,
    cache: Path,
    identity: str,
    fetch: Callable[[], Sources],
    build: Callable[[Path, Sources], CorpusSummary],
) -> CorpusSummary:
    """The corpus of that identity in `out`; its summary, with the seconds this call took.

    It is copied from `cache/corpora/IDENTITY`, where it is made first (from what `fetch` brings) unless it is finished
    there. Nothing is done if `out` holds it already. Raises UserError if `out` holds something else.
    """
    started = time.perf_counter()
    summary = read_note(out, identity)
    if summary is None:
        kept = cache / "corpora" / identity
        summary = read_note(kept, identity) or _make(kept, identity, fetch, build, started)
        with staged(out, identity) as stage:
            shutil.copytree(kept, stage, dirs_exist_ok=True)
    return replace(summary, seconds=time.perf_counter() - started)


def _make(
    kept: Path,
    identity: str,
    fetch: Callable[[], Sources],
    build: Callable[[Path, Sources], CorpusSummary],
    started: float,
) -> CorpusSummary:
    """Build the corpus in a folder of its own beside `kept`, a name it gets when finished.

    Of several processes that do so at once the first to finish gives its corpus the name; the others made the same.
    """
    if kept.exists() and read_note(kept, identity) is None:  # looked at in this order: what comes in between is whole
        shutil.rmtree(kept)
    sources = fetch()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{identity}-") as temporary:
        stage = Path(temporary) / "corpus"
        stage.mkdir()
        summary = replace(build(stage, sources), seconds=time.perf_counter() - started)
        write_note(stage, summary, identity)
        try:
            os.replace(stage, kept)
        except OSError:
            if read_note(kept, identity) is None:
                raise
    return summary


def identify(name: str, *parts: object) -> str:
    """A short name of a corpus: equal for equal `parts` (anything JSON can say) only."""
    return f"{name}-{sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


def renderer() -> str:
    """The version of resvg-py, which decides the pixels. Raises CorpusUnavailable where it is not installed."""
    try:
        return version("resvg-py")
    except ModuleNotFoundError as error:
        raise CorpusUnavailable("icons need resvg-py to be drawn: `pip install truepair[demo]`") from error
