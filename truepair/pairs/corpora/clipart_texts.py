"""What a drawing of the Open Clip Art Library is called: by its SVG's metadata, and by its file's name."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn
from xml.parsers import expat

MOST_TEXT = 10_000  # characters of one field
MOST_DEPTH = 1_000  # elements in one another; drawing programs nest tens
PUBLIC_DOMAIN = re.compile("public ?domain", re.IGNORECASE)
PERL = re.compile(r"hash(\(0x[0-9a-f]+\))?", re.IGNORECASE)  # what a script of the library wrote for some keywords
FIELDS = ("title", "description", "creator", "subject")


@dataclass
class Texts:
    """The Dublin Core fields of one drawing, white space made plain; empty where they are missing."""

    title: str = ""
    description: str = ""
    author: str = ""
    licence: str = ""  # the name or address of it
    keywords: list[str] = field(default_factory=list)

    @property
    def public_domain(self) -> bool:
        """Whether the drawing says that anyone may do anything with it."""
        return bool(PUBLIC_DOMAIN.search(self.licence))


class _Place(NamedTuple):
    """Where an element stands: its name, whether metadata is around it or is it, the field it is or is part of."""

    name: str = ""
    in_metadata: bool = False
    is_work: bool = False  # metadata/.../Work
    field: str = ""  # "subject" in .../metadata/RDF/Work/subject/Bag/li; empty in none

    def child(self, name: str) -> "_Place":
        is_field = self.is_work and name in FIELDS
        return _Place(
            name,
            self.in_metadata or name == "metadata",
            self.in_metadata and name == "Work",
            self.field or (name if is_field else ""),
        )


class _Reader:
    """Collects the fields below metadata/RDF/Work as expat meets them."""

    def __init__(self) -> None:
        self.texts = Texts()
        self._path = [_Place()]
        self._said: list[str] = []
        self._length = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._path) > MOST_DEPTH:
            raise ValueError(f"elements over {MOST_DEPTH:,} deep in one another")
        around = self._path[-1]
        here = around.child(name.rpartition(" ")[2])
        self._path.append(here)
        if (around.name, here.name) == ("Work", "license"):
            self.texts.licence = next((attributes[key] for key in attributes if key.endswith("resource")), "")[
                :MOST_TEXT
            ]
        if here.field and here.name in (*FIELDS, "li"):
            self._said, self._length = [], 0

    def text(self, data: str) -> None:
        if self._path[-1].field and self._length <= MOST_TEXT:
            self._said.append(data)
            self._length += len(data)

    def end(self, _name: str) -> None:
        here = self._path.pop()
        if not here.field:
            return
        said = " ".join("".join(self._said)[:MOST_TEXT].split())
        match here.field:
            case "title" if here.name == "title" and self._path[-1].name == "Work":
                self.texts.title = self.texts.title or said
            case "description" if here.name == "description":
                self.texts.description = self.texts.description or said
            case "creator" if here.name == "title" and said:
                self.texts.author = said
            case "subject" if here.name == "li" and said and not PERL.fullmatch(said):
                self.texts.keywords.append(said)


def read_texts(svg: bytes) -> Texts:
    """The metadata of an SVG.

    Raises ValueError on XML that is broken, is in no known encoding, or could keep its reader busy: entities out of
    entities, elements over MOST_DEPTH deep in one another.

    Nothing outside the file is read, whatever it refers to.
    """

    def entity(name: str, _is_parameter: int, value: str | None, *_: str | None) -> None:
        if value is None or "&" in value or "%" in value or len(value) > MOST_TEXT:
            refuse(name)

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"entity {name!r} could be a bomb")

    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(svg, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(str(error)) from error
    return reader.texts


def file_name_text(stem: str, author: str) -> str:
    """A file's name as words, without the running number and the author that the library's upload page appended.

    The page cut names off, so that the author may be cut too: 'glace_2_bw_jean-victor_b_01' by Jean-Victor Balin is
    'glace 2 bw'. Empty if no letter is left.
    """
    words = re.findall(r"[^\W_]+", re.sub(r"_(0\d)?$", "", stem))
    names = re.findall(r"[a-z0-9]+", author.lower())
    for start in range(len(words)):
        tail = [word.lower() for word in words[start:]]
        if len(tail) <= len(names) and tail[:-1] == names[: len(tail) - 1]:
            last = names[len(tail) - 1]
            if tail[-1] == last or (last.startswith(tail[-1]) and (len(tail) > 1 or len(tail[-1]) >= 3)):
                words = words[:start]
                break
    text = " ".join(words)
    return text if any(character.isalpha() for character in text) else ""
