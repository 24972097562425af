"""Captions by the ten thousand, as Arrow arrays: cut, split into words, their letters counted by script."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from truepair.pairs.columns import StringLists

Ints = NDArray[np.int64]

ROWS = 16_384  # at a time
LONGEST = 1024  # bytes of a caption that are looked at: what it says, it says in them
NO_WORD = r"[^\p{L}\p{M}\p{N}]+"

SCRIPTS = (
    "", "LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "DEVANAGARI", "BENGALI", "GURMUKHI",
    "GUJARATI", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER",
    "ETHIOPIC", "HANGUL", "HAN", "KANA",
)  # fmt: skip
_OTHER_NAMES = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA", "FULLWIDTH": "LATIN"}


@dataclass(frozen=True)
class Piece:
    """The captions of rows start … stop-1. owner: (m,) their rows, ascending. texts: (m,) Arrow strings, cut."""

    start: int
    stop: int
    owner: Ints
    texts: pa.Array


def pieces(captions: StringLists, every: int = 1) -> Iterator[Piece]:
    """The captions ROWS rows at a time, of `every` so many pieces one, each cut to LONGEST bytes (whole characters)."""
    for start in range(0, len(captions), ROWS * every):
        stop = min(start + ROWS, len(captions))
        ends = np.asarray(captions.ends[start:stop])
        first, last = int(captions.ends[start - 1]) if start else 0, int(ends[-1])
        owner = np.repeat(np.arange(start, stop), np.diff(ends, prepend=first))
        begin = int(captions.strings.ends[first - 1]) if first else 0
        edges = np.concatenate([[begin], captions.strings.ends[first:last]])
        yield Piece(start, stop, owner, _cut(captions.strings.blob, edges))


def _cut(blob: NDArray[np.uint8], edges: Ints) -> pa.Array:
    """Strings between `edges` (m + 1,) of a UTF-8 blob, each of LONGEST bytes at most, ended between two characters."""
    begin, length = edges[:-1], np.diff(edges)
    if len(length) and length.max() > LONGEST:
        kept = np.minimum(length, LONGEST)
        for _ in range(3):  # a character has up to three bytes after its first
            long = np.flatnonzero(kept < length)
            inside = (blob[begin[long] + kept[long]] & 0xC0) == 0x80
            kept[long[inside]] -= 1
        offsets = np.concatenate([[0], np.cumsum(kept)])
        source = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], kept)
        data = np.asarray(blob[source])
    else:
        offsets, data = edges - edges[0], np.asarray(blob[edges[0] : edges[-1]])
    return pa.Array.from_buffers(
        pa.large_string(), len(length), [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]
    )


def words(texts: pa.Array) -> tuple[Ints, pa.Array]:
    """Words (w,) of all texts in lower case, runs of letters, marks and digits, and the number of the text of each."""
    lists = pc.split_pattern_regex(pc.utf8_lower(texts), pattern=NO_WORD)
    owner, flat = pc.list_parent_indices(lists).to_numpy().astype(np.int64), pc.list_flatten(lists)
    said = np.asarray(pc.not_equal(flat, ""))
    return owner[said], flat.filter(pa.array(said))


def scripts(texts: pa.Array) -> Ints:
    """(m, len(SCRIPTS)) letters of each text by script; column 0: no letters, or of a script not listed."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    begins = np.flatnonzero((data & 0xC0) != 0x80)
    padded = np.concatenate([data, np.zeros(3, np.uint8)]).astype(np.int32)
    lead = padded[begins]
    code = lead.copy()
    for size, (low, high, mask) in enumerate(((0xC0, 0xE0, 0x1F), (0xE0, 0xF0, 0x0F), (0xF0, 0xF8, 0x07)), start=2):
        longer = np.flatnonzero((lead >= low) & (lead < high))  # characters of `size` bytes
        value = lead[longer] & mask
        for byte in range(1, size):
            value = value << 6 | padded[begins[longer] + byte] & 0x3F
        code[longer] = value
    owner = np.searchsorted(offsets - offsets[0], begins, side="right") - 1
    counted = np.bincount(owner * len(SCRIPTS) + script_table()[code], minlength=len(texts) * len(SCRIPTS))
    return counted.reshape(len(texts), len(SCRIPTS))


@lru_cache(maxsize=1)
def script_table() -> NDArray[np.uint8]:
    """(0x110000,) place in SCRIPTS of every code point: the first word of a letter's Unicode name says the script."""
    table = np.zeros(0x110000, np.uint8)
    place = {name: number for number, name in enumerate(SCRIPTS)}
    for code in (*range(0x41, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x10000)):
        if unicodedata.category(chr(code))[0] == "L":
            name = unicodedata.name(chr(code), "").split(" ")[0]
            table[code] = place.get(_OTHER_NAMES.get(name, name), 0)
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x323AF)):
        table[first : last + 1] = place["HAN"]
    table[0xAC00:0xD7A4] = place["HANGUL"]
    return table
