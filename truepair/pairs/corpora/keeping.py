"""A corpus made once: copied from the cache where it lies finished, else made there first, never half there."""

import json
import shutil
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

    It is built (from what `fetch` brings) in `cache/corpora/IDENTITY` unless it is finished there, and copied. Nothing
    is done if `out` holds it already. Raises UserError if `out` holds something else.
    """
    started = time.perf_counter()
    summary = read_note(out, identity)
    if summary is None:
        kept = cache / "corpora" / identity
        summary = read_note(kept, identity)
        if summary is None:
            shutil.rmtree(kept, ignore_errors=True)
            sources = fetch()
            with staged(kept, identity) as stage:
                summary = build(stage, sources)
                write_note(stage, replace(summary, seconds=time.perf_counter() - started), identity)
        with staged(out, identity) as stage:
            shutil.copytree(kept, stage, dirs_exist_ok=True)
    return replace(summary, seconds=time.perf_counter() - started)


def identify(name: str, *parts: object) -> str:
    """A short name of a corpus: equal for equal `parts` (anything JSON can say) only."""
    return f"{name}-{sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


def renderer() -> str:
    """The version of resvg-py, which decides the pixels. Raises CorpusUnavailable where it is not installed."""
    try:
        return version("resvg-py")
    except ModuleNotFoundError as error:
        raise CorpusUnavailable("icons need resvg-py to be drawn: `pip install truepair[demo]`") from error
