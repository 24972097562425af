"""Emoji concepts: what they are called in emojibase, and which icon of a set draws which of them."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from truepair.pairs.corpora.iconify import Drawing, IconSet, plain_code
from truepair.pairs.corpora.packages import Package

MOST_TAGS = 8  # of up to 16: keeps a caption near 20 tokens
COMPONENTS = 2  # emojibase's group of skin tones and hair, which are no pictures of their own
SHORTCODES = ("emojibase", "github", "cldr")

TEXTS = Package(
    "emojibase-data",
    "17.0.0",  # MIT
    ("en/data.json", "meta/unicode-names.json", *(f"en/shortcodes/{source}.json" for source in SHORTCODES)),
)


@dataclass(frozen=True)
class Concept:
    """What one emoji means, and the squashed names it goes by: a tuple a source, the most reliable source first."""

    code: str  # code points without joiners: "1f469-1f680"
    captions: tuple[
        str, ...
    ]  # label, a shortcode that says something else, tags; distinct, so sometimes fewer than three
    names: tuple[tuple[str, ...], ...]


def read_concepts(folder: Path) -> list[Concept]:
    """The concepts of an unpacked emojibase-data in Unicode's order; no components, flag letters or skin tones."""
    entries = json.loads((folder / "en/data.json").read_text(encoding="utf-8"))
    official = json.loads((folder / "meta/unicode-names.json").read_text(encoding="utf-8"))
    sources = [json.loads((folder / f"en/shortcodes/{name}.json").read_text(encoding="utf-8")) for name in SHORTCODES]
    concepts = []
    for entry in sorted(entries, key=lambda entry: entry.get("order", 0)):
        if entry.get("group", COMPONENTS) == COMPONENTS:
            continue
        label, code = entry["label"], entry["hexcode"]
        shortcodes = [name for source in sources for name in _listed(source.get(code))]
        captions = (label, _telling(shortcodes, label), ", ".join(entry.get("tags", [])[:MOST_TAGS]))
        names = ([label], _listed(official.get(code)), shortcodes)
        concepts.append(
            Concept(
                code=plain_code(code),
                captions=tuple(dict.fromkeys(text for text in captions if text)),
                names=tuple(tuple(squash(name) for name in source) for source in names),
            )
        )
    return concepts


def name_concepts(concepts: Sequence[Concept], codes: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Squashed name -> concept index, the most reliable names first.

    Sources in that order: labels, Unicode names, the names that sets with a code point table (`codes`: code -> name)
    give, shortcodes. The first source to know a name decides; a name that one source gives to several concepts is
    no name there.
    """
    index_of_code = {concept.code: i for i, concept in enumerate(concepts)}
    in_sets: list[list[str]] = [[] for _ in concepts]
    for table in codes:
        for code, name in table.items():
            if code in index_of_code:
                in_sets[index_of_code[code]].append(squash(name))
    sources: list[Sequence[Sequence[str]]] = [
        [concept.names[0] for concept in concepts],
        [concept.names[1] for concept in concepts],
        in_sets,
        [concept.names[2] for concept in concepts],
    ]
    concept_of: dict[str, int] = {}
    for source in sources:
        claims: dict[str, set[int]] = {}
        for i, names in enumerate(source):
            for name in names:
                claims.setdefault(name, set()).add(i)
        concept_of |= {name: min(who) for name, who in claims.items() if len(who) == 1 and name not in concept_of}
    return concept_of


def match_icons(
    concepts: Sequence[Concept], icon_set: IconSet, concept_of: Mapping[str, int]
) -> tuple[dict[int, Drawing], dict[int, int]]:
    """Which icon draws which concept: by code point where the set says, else by name (as `name_concepts` gives them).

    Returns concept index -> drawing, and concept index -> the concept whose very drawing it shares. A drawing stands
    for one concept: the one whose label it bears, else the one with the shortest label ("flag: Spain", not
    "flag: Ceuta & Melilla").
    """
    names = {squash(name): name for name in reversed(icon_set.names())}
    by_name: dict[int, str] = {}
    for squashed, concept in concept_of.items():
        if squashed in names:
            by_name.setdefault(concept, names[squashed])
    wanted = ((i, icon_set.name_of_code.get(concept.code) or by_name.get(i)) for i, concept in enumerate(concepts))
    found = {i: drawing for i, name in wanted if name and (drawing := icon_set.drawing(name))}
    owner: dict[tuple[str, bool, int], int] = {}
    for i in sorted(
        found, key=lambda i: (squash(found[i].name) not in concepts[i].names[0], len(concepts[i].captions[0]))
    ):
        owner.setdefault(found[i].look, i)
    shared = {i: owner[drawing.look] for i, drawing in found.items() if owner[drawing.look] != i}
    return {i: drawing for i, drawing in found.items() if i not in shared}, shared


def squash(name: str) -> str:
    """A name as sets agree on it, ASCII letters and digits alone: '1st-place medal' -> '1stplacemedal'."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]", "", plain)


def _telling(shortcodes: Iterable[str], label: str) -> str:
    """The shortcode, as words, that adds most to the label; empty if none adds a word."""
    known = set(re.findall(r"\w+", label.lower()))
    texts = dict.fromkeys(code.replace("_", " ").strip() for code in shortcodes)
    new_words = {text: {word for word in text.split() if word.isalpha()} - known for text in texts}
    telling = [text for text, words in new_words.items() if words and squash(text) != squash(label)]
    return max(telling, key=lambda text: len(new_words[text]), default="")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
