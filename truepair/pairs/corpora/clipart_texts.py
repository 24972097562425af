"""What a drawing of the Open Clip Art Library is called: by its SVG's metadata, and by its file's name."""

import re
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

MOST_TEXT = 10_000  # characters of one field
PUBLIC_DOMAIN = re.compile("public ?domain", re.IGNORECASE)
PERL = re.compile(r"hash(\(0x[0-9a-f]+\))?", re.IGNORECASE)  # what a script of the library wrote for some keywords


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


class _Reader:
    """Collects the fields below metadata/RDF/Work as expat meets them."""

    FIELDS = ("title", "description", "creator", "subject")

    def __init__(self) -> None:
        self.texts = Texts()
        self._path: list[str] = []
        self._said: list[str] = []
        self._length = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name.rpartition(" ")[2])
        if self._path[-2:] == ["Work", "license"]:
            self.texts.licence = next((attributes[key] for key in attributes if key.endswith("resource")), "")[
                :MOST_TEXT
            ]
        if self._field() and self._path[-1] in (*self.FIELDS, "li"):
            self._said, self._length = [], 0

    def text(self, data: str) -> None:
        if self._field() and self._length <= MOST_TEXT:
            self._said.append(data)
            self._length += len(data)

    def end(self, _name: str) -> None:
        said = " ".join("".join(self._said)[:MOST_TEXT].split())
        last = self._path[-1]
        match self._field():
            case "title" if last == "title" and self._path[-2] == "Work":
                self.texts.title = self.texts.title or said
            case "description" if last == "description":
                self.texts.description = self.texts.description or said
            case "creator" if last == "title" and said:
                self.texts.author = said
            case "subject" if last == "li" and said and not PERL.fullmatch(said):
                self.texts.keywords.append(said)
        self._path.pop()

    def _field(self) -> str:
        """The field we are in, e.g. "subject" in .../metadata/RDF/Work/subject/Bag/li; empty in none."""
        for i in range(len(self._path) - 1):
            if self._path[i] == "Work" and "metadata" in self._path[:i] and self._path[i + 1] in self.FIELDS:
                return self._path[i + 1]
        return ""


def read_texts(svg: bytes) -> Texts:
    """The metadata of an SVG. Raises ValueError on XML that is broken, or defines entities out of entities.

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
    except expat.ExpatError as error:
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
