"""The emoji corpus: about 1,900 concepts drawn in nine styles, one of them held out to be recognised unseen."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from truepair.errors import UserError
from truepair.pairs.corpora.concepts import TEXTS, match_icons, name_concepts, read_concepts
from truepair.pairs.corpora.credits import licence_page, note_of
from truepair.pairs.corpora.iconify import read_codes, read_icon_set
from truepair.pairs.corpora.keeping import identify, kept_corpus, renderer
from truepair.pairs.corpora.packages import Package, cache_folder, fetch_packages
from truepair.pairs.corpora.shards import CorpusSummary, Pair, Skipped, write_shards, write_zeroshot
from truepair.pairs.corpora.spreading import draw, spreading

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
    names = [style.name for style in styles]
    if held_out not in names or len(names) < 2:
        raise UserError(f"no emoji style {held_out!r} to hold out: choose one of {', '.join(names)}")
    if size < 8:
        raise UserError(f"emoji of {size} px cannot be told apart: choose 8 px or more")
    cache = cache or cache_folder()
    sets = [(style.name, style.version) for style in styles]
    identity = identify("emoji", RECIPE, TEXTS.version, size, held_out, seed, sets, renderer(), version("pillow"))
    return kept_corpus(
        out,
        cache,
        identity,
        lambda: fetch_packages([TEXTS, *(style.package for style in styles)], cache),
        lambda stage, folders: _build(stage, folders, size, held_out, seed, workers, styles),
    )


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
    with spreading(workers) as spread:
        for style in styles:
            icon_set = read_icon_set(folders[style.package.name])
            drawings, shared = match_icons(concepts, icon_set, concept_of)
            log.info("rendering %d emoji of %s", len(drawings), style.name)
            pictures = dict(zip(drawings, spread(partial(draw, size=size), drawings.values()), strict=True))
            reasons = {i: picture for i, picture in pictures.items() if isinstance(picture, str)}
            reasons |= {i: f"the very drawing of another: {concepts[twin].captions[0]!r}" for i, twin in shared.items()}
            skipped += [Skipped(f"{style.name}-{concepts[i].code}", reasons[i]) for i in sorted(reasons)]
            drawn[style.name] = {i: picture for i, picture in pictures.items() if isinstance(picture, bytes)}
            pairs = len(drawn[style.name])
            notes.append(note_of(icon_set, style.name, style.package.name, style.version, pairs))
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
    about = (
        "Each picture is an emoji of the set named by its `style` field, rendered to PNG. Every set keeps its own\n"
        "licence; those marked SA also bind what is made from them when it is passed on."
    )
    texts = f"Captions: `{TEXTS.name}@{TEXTS.version}`, Miles Johnson, MIT, from Unicode CLDR (Unicode-3.0)."
    (out / "LICENSES.md").write_text(licence_page(notes, about, texts), encoding="utf-8")
    return CorpusSummary(len(train), len(test), len(class_of), tuple(notes), tuple(skipped), 0.0)
