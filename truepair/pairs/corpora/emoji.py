"""The emoji corpus: about 1,900 concepts drawn in nine styles, one of them held out to be recognised unseen."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from truepair.errors import UserError
from truepair.pairs.corpora.concepts import TEXTS, match_icons, name_concepts, read_concepts
from truepair.pairs.corpora.iconify import Drawing, read_codes, read_icon_set, render
from truepair.pairs.corpora.packages import CorpusUnavailable, Package, cache_folder, fetch_packages
from truepair.pairs.corpora.shards import (
    CorpusSummary,
    Pair,
    Skipped,
    StyleNote,
    read_note,
    staged,
    write_note,
    write_shards,
    write_zeroshot,
)

RECIPE = 1  # raise it when the same packages would give other pairs: kept corpora are named by it
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Style:
    """One artist's emoji set: its short name, and the version of its npm package `@iconify-json/NAME`."""

    name: str
    version: str

    @property
    def package(self) -> Package:
        """What to fetch of it."""
        return Package(f"@iconify-json/{self.name}", self.version, ("icons.json", "chars.json", "info.json"))


# Colour sets only: with the two monochrome ones a toy learner of as many steps knew noto 1 to 4 points worse (ours).
STYLES = (
    Style("noto", "1.2.9"),  # Google, Apache-2.0
    Style("noto-v1", "1.2.5"),  # Google's first design, Apache-2.0
    Style("fluent-emoji", "1.2.7"),  # Microsoft, shaded, MIT
    Style("fluent-emoji-flat", "1.2.6"),  # Microsoft, MIT
    Style("twemoji", "1.2.5"),  # Twitter, CC-BY-4.0
    Style("openmoji", "1.2.29"),  # OpenMoji, CC-BY-SA-4.0
    Style("emojione", "1.2.3"),  # EmojiTwo, CC-BY-4.0
    Style("emojione-v1", "1.2.3"),  # JoyPixels' first design, CC-BY-SA-4.0
    Style("fxemoji", "1.2.2"),  # Mozilla, Apache-2.0
)


def make_emoji(
    out: Path,
    *,
    size: int = 64,
    held_out: str = "noto",
    seed: int = 0,
    cache: Path | None = None,
    workers: int = 1,
    styles: Sequence[Style] = STYLES,
) -> CorpusSummary:
    """Make `out/train` (every style but `held_out`), `out/test` (that style), `out/zeroshot` (a class a test picture).

    Pictures are `size` px squares, RGB on white. A train pair's label is its concept's class, -1 where the held-out
    artist has none. The train order is shuffled by `seed`. The finished corpus stays in `cache`: the next call copies
    it, and a call whose corpus is in `out` already does nothing. `workers` > 1 render in processes of their own.
    Raises CorpusUnavailable if the artwork cannot be fetched or drawn here, UserError on an unknown `held_out`,
    a `size` under 8, or an `out` that holds something else.
    """
    started = time.perf_counter()
    names = [style.name for style in styles]
    if held_out not in names or len(names) < 2:
        raise UserError(f"no emoji style {held_out!r} to hold out: choose one of {', '.join(names)}")
    if size < 8:
        raise UserError(f"emoji of {size} px cannot be told apart: choose 8 px or more")
    cache = cache or cache_folder()
    identity = _identity(size, held_out, seed, styles)
    summary = read_note(out, identity)
    if summary is None:
        kept = cache / "corpora" / identity
        summary = read_note(kept, identity)
        if summary is None:
            shutil.rmtree(kept, ignore_errors=True)
            folders = fetch_packages([TEXTS, *(style.package for style in styles)], cache)
            with staged(kept, identity) as stage:
                summary = _build(stage, folders, size, held_out, seed, workers, styles)
                write_note(stage, replace(summary, seconds=time.perf_counter() - started), identity)
        with staged(out, identity) as stage:
            shutil.copytree(kept, stage, dirs_exist_ok=True)
    return replace(summary, seconds=time.perf_counter() - started)


def _build(
    out: Path,
    folders: Mapping[str, Path],
    size: int,
    held_out: str,
    seed: int,
    workers: int,
    styles: Sequence[Style],
) -> CorpusSummary:
    concepts = read_concepts(folders[TEXTS.name])
    concept_of = name_concepts(concepts, [read_codes(folders[style.package.name]) for style in styles])
    drawn: dict[str, dict[int, bytes]] = {}  # style -> concept index -> PNG
    notes, skipped = [], []
    with ExitStack() as stack:
        spread: Callable[..., Iterable[bytes | str]] = map
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            spread = partial(pool.map, chunksize=32)
        for style in styles:
            icon_set = read_icon_set(folders[style.package.name])
            drawings, shared = match_icons(concepts, icon_set, concept_of)
            log.info("rendering %d emoji of %s", len(drawings), style.name)
            pictures = dict(zip(drawings, spread(partial(_draw, size=size), drawings.values()), strict=True))
            reasons = {i: picture for i, picture in pictures.items() if isinstance(picture, str)}
            reasons |= {i: f"the very drawing of {concepts[twin].captions[0]!r}" for i, twin in shared.items()}
            skipped += [Skipped(f"{style.name}-{concepts[i].code}", reasons[i]) for i in sorted(reasons)]
            drawn[style.name] = {i: picture for i, picture in pictures.items() if isinstance(picture, bytes)}
            author, licence = icon_set.info["author"], icon_set.info["license"]
            notes.append(
                StyleNote(
                    name=style.name,
                    package=style.package.name,
                    version=style.version,
                    author=author["name"],
                    licence=licence.get("spdx") or licence["title"],
                    url=author.get("url", ""),
                    pairs=len(drawn[style.name]),
                )
            )
    class_of = {i: label for label, i in enumerate(drawn[held_out])}

    def pair(style: str, i: int) -> Pair:
        concept = concepts[i]
        extra = {"concept": concept.captions[0], "code": concept.code, "style": style}
        return Pair(f"{style}-{concept.code}", drawn[style][i], concept.captions, class_of.get(i, -1), extra)

    test = [pair(held_out, i) for i in class_of]
    train = [pair(style, i) for style in drawn if style != held_out for i in drawn[style]]
    order = np.random.default_rng(seed).permutation(len(train))
    write_shards((train[i] for i in order), out / "train" / "shards")
    write_shards(test, out / "test" / "shards")
    write_zeroshot(test, [concepts[i].captions[0] for i in class_of], ["{c}"], out / "zeroshot")
    (out / "LICENSES.md").write_text(_licences(notes), encoding="utf-8")
    return CorpusSummary(len(train), len(test), len(class_of), tuple(notes), tuple(skipped), 0.0)


def _draw(drawing: Drawing, size: int) -> bytes | str:
    """The PNG, or the reason why there is none."""
    try:
        return render(drawing, size)
    except ValueError as error:
        return f"cannot be drawn: {error}"


def _licences(notes: Iterable[StyleNote]) -> str:
    rows = "".join(
        f"| {n.name} | {n.author} | {n.licence} | `{n.package}@{n.version}` | {n.url} | {n.pairs} |\n" for n in notes
    )
    return (
        "# Whose pictures these are\n\n"
        "Each picture is an emoji of the set named by its `style` field, rendered to PNG. Every set keeps its own\n"
        "licence; those marked SA also bind what is made from them when it is passed on.\n\n"
        "| style | author | licence | npm package | source | pictures |\n|---|---|---|---|---|---|\n"
        f"{rows}\nCaptions: `{TEXTS.name}@{TEXTS.version}`, Miles Johnson, MIT, from Unicode CLDR (Unicode-3.0).\n"
    )


def _identity(size: int, held_out: str, seed: int, styles: Sequence[Style]) -> str:
    try:
        renderer = version("resvg-py")
    except ModuleNotFoundError as error:
        raise CorpusUnavailable("emoji need resvg-py to be drawn: `pip install truepair[demo]`") from error
    parts = (RECIPE, TEXTS.version, size, held_out, seed, [(style.name, style.version) for style in styles])
    text = json.dumps((*parts, renderer, version("pillow")))
    return f"emoji-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
