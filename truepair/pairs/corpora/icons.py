"""The icons corpus: what a hundred icon sets call their icons, five sets held out to be recognised unseen."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from truepair.errors import UserError
from truepair.pairs.corpora.credits import licence_of, licence_page, note_of
from truepair.pairs.corpora.icon_names import NAME, Icon, read_icons
from truepair.pairs.corpora.iconify import IconSet, parse_icon_set
from truepair.pairs.corpora.keeping import identify, kept_corpus, renderer
from truepair.pairs.corpora.packages import CorpusUnavailable, Package, cache_folder, fetch_packages
from truepair.pairs.corpora.shards import (
    CorpusSummary,
    HeldOut,
    Pair,
    Skipped,
    StyleNote,
    write_shards,
    write_zeroshot,
)
from truepair.pairs.corpora.spreading import Progress, Spread, draw, spreading, untold

RECIPE = 1  # raise it when the same package would give other pairs: kept corpora are named by it
SETS = Package("@iconify/json", "2.2.535", ("collections.json", "json/*.json"))
HELD_OUT = ("tabler", "bi", "mingcute", "carbon", "icon-park")
PERMISSIVE = (
    *("MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Unlicense", "CC0-1.0"),
    *("CC-BY-3.0", "CC-BY-4.0"),  # ask for credit only
)
# Emoji are a corpus of their own; logos and most icons of "Programming" are trademarks, whose names tell nothing of
# the picture; of archived sets most are earlier versions of others.
OTHER_CATEGORIES = ("Emoji", "Logos", "Programming", "Archive / Unmaintained")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Drawn:
    """A set with the pictures of its icons."""

    name: str
    pictures: list[tuple[Icon, bytes]]

    def pair(self, icon: Icon, picture: bytes, label: int) -> Pair:
        extra = {"concept": icon.concept, "style": self.name, "icon": f"{self.name}:{icon.name}"}
        return Pair(_key(self.name, icon), picture, icon.captions, label, extra)


def make_icons(
    out: Path,
    *,
    size: int = 64,
    held_out: Sequence[str] = HELD_OUT,
    seed: int = 0,
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress = untold,
) -> CorpusSummary:
    """Make `out/train` (all sets but `held_out`), and of each held-out set `out/test/SET` and `out/zeroshot/SET`.

    Pictures are `size` px squares, RGB, black on white where the set has no colours. A pair's label numbers its
    concept, the same in all tables; the classes of a zero-shot set are its concepts that training has too. The train
    order is shuffled by `seed`. The finished corpus stays in `cache`: the next call copies it. `workers` > 1 render in
    processes of their own. Raises CorpusUnavailable if the icons cannot be fetched or drawn here, UserError on a
    `size` under 8, a held-out set that is not among the sets, or an `out` that holds something else.
    """
    if size < 8:
        raise UserError(f"icons of {size} px cannot be told apart: choose 8 px or more")
    cache = cache or cache_folder()
    identity = identify("icons", RECIPE, SETS.version, size, list(held_out), seed, renderer(), version("pillow"))
    return kept_corpus(
        out,
        cache,
        identity,
        lambda: fetch_packages([SETS], cache)[SETS.name],
        lambda stage, folder: _build(stage, folder, size, held_out, seed, workers, progress),
    )


def choose_sets(folder: Path) -> tuple[dict[str, IconSet], dict[str, str]]:
    """The sets of an unpacked `@iconify/json` to be drawn, by name, and why each other one is not.

    Raises CorpusUnavailable on JSON that cannot be read.
    """
    try:
        about = json.loads((folder / "collections.json").read_text(encoding="utf-8"))
        chosen, refused = dict[str, IconSet](), dict[str, str]()
        for name in sorted(about):
            if reason := _unfit(name, about):
                refused[name] = reason
                continue
            icon_set = parse_icon_set(json.loads((folder / "json" / f"{name}.json").read_text(encoding="utf-8")))
            if licence_of(icon_set) in PERMISSIVE:
                chosen[name] = icon_set
            else:
                refused[name] = f"licence {licence_of(icon_set) or 'unknown'}"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CorpusUnavailable(f"{SETS.name}@{SETS.version} cannot be read ({error}): remove {folder}") from error
    return chosen, refused


def _unfit(name: str, about: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a set is not drawn, going by what the package says of its sets; empty if nothing speaks against it."""
    parts = name.split("-")
    family = next((before for i in range(1, len(parts)) if (before := "-".join(parts[:i])) in about), "")
    category = about[name].get("category", "")
    if not NAME.fullmatch(name):
        return "its name is no set's name"
    if about[name].get("hidden"):
        return "hidden by Iconify, for a later version is there"
    if category in OTHER_CATEGORIES:
        return f"category {category}"
    return f"taken for a style of {family}" if family else ""


def _build(
    out: Path, folder: Path, size: int, held_out: Sequence[str], seed: int, workers: int, progress: Progress
) -> CorpusSummary:
    sets, refused = choose_sets(folder)
    if missing := [name for name in held_out if name not in sets]:
        raise UserError(f"no icon set {missing[0]!r} to hold out: choose among {', '.join(sets)}")
    skipped: list[Skipped] = []
    with spreading(workers) as spread:
        drawn = _draw_sets(sets, held_out, size, spread, progress, skipped)
    held, trained = drawn[: len(held_out)], _without_copies(drawn, len(held_out), skipped)
    notes = [
        note_of(sets[part.name], part.name, SETS.name, SETS.version, len(part.pictures)) for part in (*held, *trained)
    ]
    numbers = {concept: i for i, concept in enumerate(sorted({i.concept for part in drawn for i, _ in part.pictures}))}
    train = [part.pair(icon, png, numbers[icon.concept]) for part in trained for icon, png in part.pictures]
    known = {pair.extra["concept"] for pair in train}
    parts = tuple(_hold_out(out, part, numbers, known) for part in held)
    order = np.random.default_rng(seed).permutation(len(train))
    write_shards((train[i] for i in order), out / "train" / "shards")
    (out / "LICENSES.md").write_text(_licences(notes, refused), encoding="utf-8")
    tested, classes = sum(part.pairs for part in parts), sum(part.classes for part in parts)
    return CorpusSummary(len(train), tested, classes, tuple(notes), tuple(skipped), 0.0, parts)


def _draw_sets(
    sets: Mapping[str, IconSet],
    first: Sequence[str],
    size: int,
    spread: Spread,
    progress: Progress,
    skipped: list[Skipped],
) -> list[_Drawn]:
    """Every set drawn, those named `first` first; what cannot be drawn joins `skipped`."""
    icons = {name: read_icons(sets[name])[0] for name in dict.fromkeys((*first, *sets))}
    total, done, drawn = sum(map(len, icons.values())), 0, []
    drawing: Callable[..., bytes | str] = partial(draw, size=size)
    for name, of_set in icons.items():
        log.info("rendering %d icons of %s", len(of_set), name)
        pictures = []
        for icon, picture in zip(of_set, spread(drawing, [icon.drawing for icon in of_set]), strict=True):
            if isinstance(picture, bytes):
                pictures.append((icon, picture))
            else:
                skipped.append(Skipped(_key(name, icon), picture))
            done += 1
            progress(done, total)
        drawn.append(_Drawn(name, pictures))
    return drawn


def _without_copies(drawn: Sequence[_Drawn], held: int, skipped: list[Skipped]) -> list[_Drawn]:
    """The sets to train on, without pictures of the first `held` sets and without a picture twice under one name."""
    tested = {_look(png): _key(part.name, icon) for part in drawn[:held] for icon, png in part.pictures}
    seen: dict[tuple[bytes, str], str] = {}
    trained = []
    for part in drawn[held:]:
        pictures = []
        for icon, png in part.pictures:
            key, look = _key(part.name, icon), _look(png)
            if look in tested:
                skipped.append(Skipped(key, f"the very picture of a held-out icon: {tested[look]}"))
            elif seen.setdefault((look, icon.concept), key) != key:
                skipped.append(Skipped(key, f"the very picture of one of the same name: {seen[look, icon.concept]}"))
            else:
                pictures.append((icon, png))
        trained.append(replace(part, pictures=pictures))
    return trained


def _hold_out(out: Path, part: _Drawn, numbers: Mapping[str, int], known: set[str]) -> HeldOut:
    """Write `test/SET` and `zeroshot/SET`."""
    test = [part.pair(icon, png, numbers[icon.concept]) for icon, png in part.pictures]
    write_shards(test, out / "test" / part.name / "shards")
    classes = sorted({pair.captions[0] for pair in test} & known)
    class_of = {concept: i for i, concept in enumerate(classes)}
    named = [replace(pair, label=class_of[pair.captions[0]]) for pair in test if pair.captions[0] in class_of]
    write_zeroshot(named, classes, ["{c}"], out / "zeroshot" / part.name)
    return HeldOut(part.name, len(test), len(classes))


def _key(set_name: str, icon: Icon) -> str:
    return f"{set_name}_{icon.name}"  # neither name has an underscore


def _look(png: bytes) -> bytes:
    return sha256(png).digest()


def _licences(notes: Sequence[StyleNote], refused: Mapping[str, str]) -> str:
    about = (
        "Each picture is an icon of the set named by its `style` field, rendered to PNG. Every set keeps its own\n"
        "licence; only sets under a licence that asks for nothing but credit are here: " + ", ".join(PERMISSIVE) + "."
    )
    left = "".join(f"* {name}: {reason}\n" for name, reason in refused.items())
    return licence_page(notes, about, f"Captions: the names that the sets give their icons.\n\n## Left out\n\n{left}")
