"""What an icon is called: its name without the words that only say in which style it is drawn, and its other names."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from truepair.pairs.corpora.iconify import Drawing, IconSet

STYLE_WORDS = ("fill", "filled", "outline", "outlined", "solid", "stroke", "duotone", "twotone", "two-tone")
MOST_CAPTIONS = 4  # the name and three of its aliases
NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")  # Iconify's rule


@dataclass(frozen=True)
class Icon:
    """One icon of a set, and what it is called: `captions` are distinct, its name as words first."""

    name: str  # in the set: "home-filled"
    drawing: Drawing
    captions: tuple[str, ...]  # "home", "house"

    @property
    def concept(self) -> str:
        """What it shows, as other sets would name it too."""
        return self.captions[0]


class Styles:
    """How a set writes the style into the names of its icons."""

    def __init__(self, icon_set: IconSet) -> None:
        self._order = [suffix for suffix in icon_set.suffixes if suffix]
        ends = sorted({*self._order, *STYLE_WORDS}, key=len, reverse=True)
        begins = sorted(filter(None, icon_set.prefixes), key=len, reverse=True)
        self._end = re.compile(rf"(?<=[^-])-(?:{_any(ends)}|0\d+)$")
        self._begin = re.compile(rf"^(?:{_any(begins)})-(?=[^-])") if begins else None

    def plain(self, name: str) -> str:
        """The name without style words at its end, the set's own prefixes, and numbers like -01 of a series."""
        while True:
            shorter = self._end.sub("", name)
            if self._begin:
                shorter = self._begin.sub("", shorter)
            if shorter == name:
                return name
            name = shorter

    def rank(self, name: str) -> tuple[int, int, str]:
        """Smaller is preferred: the undecorated name, then styles in the order in which the set declares them."""
        if name == self.plain(name):
            return -1, len(name), name
        ends = [(len(suffix), i) for i, suffix in enumerate(self._order) if name.endswith(f"-{suffix}")]
        return max(ends)[1] if ends else len(self._order), len(name), name


def read_icons(icon_set: IconSet) -> tuple[list[Icon], int]:
    """One icon a plain name, in the set's order, and how many styles and numbered variants of them were left out.

    An alias that turns or mirrors its parent is an icon of its own; any other alias is a further caption of it.
    Names that are not Iconify's (letters, digits, single hyphens) are left out.
    """
    styles = Styles(icon_set)
    groups: dict[str, list[str]] = {}
    for name in icon_set.names():
        if NAME.fullmatch(name) and (name in icon_set.icons or _changes(icon_set, name)) and icon_set.drawing(name):
            groups.setdefault(styles.plain(name), []).append(name)
    others: dict[str, list[str]] = {}
    for alias in icon_set.aliases:
        plain = styles.plain(alias)
        if NAME.fullmatch(alias) and plain not in groups and (root := _root(icon_set, alias)):
            others.setdefault(styles.plain(root), []).append(plain)
    return list(_icons(icon_set, styles, groups, others)), sum(map(len, groups.values())) - len(groups)


def _icons(
    icon_set: IconSet, styles: Styles, groups: dict[str, list[str]], others: dict[str, list[str]]
) -> Iterator[Icon]:
    for plain, names in groups.items():
        name = min(names, key=styles.rank)
        texts = dict.fromkeys(text.replace("-", " ") for text in (plain, *others.get(plain, ())))
        drawing = icon_set.drawing(name)
        assert drawing is not None  # as checked when it was grouped
        yield Icon(name, drawing, tuple(texts)[:MOST_CAPTIONS])


def _changes(icon_set: IconSet, alias: str) -> bool:
    """Whether the alias looks different from its parent."""
    return any(icon_set.aliases[alias].get(change) for change in ("hFlip", "vFlip", "rotate"))


def _root(icon_set: IconSet, alias: str) -> str | None:
    """The icon, or the alias that changes one, of which `alias` is but another name; None if it leads nowhere."""
    name, seen = alias, set[str]()
    while name in icon_set.aliases and name not in seen and not _changes(icon_set, name):
        if icon_set.aliases[name].get("hidden"):
            return None
        seen.add(name)
        name = icon_set.aliases[name]["parent"]
    return name if icon_set.drawing(name) else None


def _any(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))
