"""Whose pictures a corpus holds: a set's author and licence, and LICENSES.md that names them all."""

from collections.abc import Iterable

from truepair.pairs.corpora.iconify import IconSet
from truepair.pairs.corpora.shards import StyleNote

HEADER = "| style | author | licence | package | source | pictures |\n|---|---|---|---|---|---|\n"


def note_of(icon_set: IconSet, name: str, package: str, version: str, pairs: int) -> StyleNote:
    """Where the `pairs` pictures of an icon set come from, as the set itself says."""
    author = icon_set.info["author"]
    return StyleNote(name, package, version, author["name"], licence_of(icon_set), author.get("url", ""), pairs)


def licence_of(icon_set: IconSet) -> str:
    """The SPDX name of the set's licence, else its title; empty if the set names none."""
    licence = icon_set.info.get("license", {})
    return str(licence.get("spdx") or licence.get("title", ""))


def licence_page(notes: Iterable[StyleNote], about: str, closing: str) -> str:
    """LICENSES.md: what the pictures are, a row a set, where the captions come from."""
    rows = "".join(
        f"| {_cell(n.name)} | {_cell(n.author)} | {_cell(n.licence)} | `{_cell(n.package)}@{_cell(n.version)}` "
        f"| {_cell(n.url)} | {n.pairs} |\n"
        for n in notes
    )
    return f"# Whose pictures these are\n\n{about}\n\n{HEADER}{rows}\n{closing}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
