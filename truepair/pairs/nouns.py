"""The vocabulary of concepts that a table's own captions give: their most frequent nouns and noun phrases."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from truepair.pairs.columns import StringLists
from truepair.pairs.lexicon import NOUN, OTHER, look_up

PIECE = 32_768  # captions counted at once
LONGEST = 1_000  # characters read of a caption: what a page writes beyond is not about the picture (ours)
TOGETHER = 0.5  # normalised pointwise mutual information from which two words are a phrase (ours)
WITHIN = 0.8  # a phrase that is mostly part of one longer phrase ("air balloon") is no concept (ours)
PHRASES = 4_000_000  # distinct pairs or triples held while counting; the rarest are forgotten beyond
BITS = 21  # of a word's number: three fit in 63; the lexicon has fewer words

Ints = npt.NDArray[np.int64]


def frequent_concepts(
    captions: StringLists | Sequence[Sequence[str]], *, most: int = 10_000, least: int = 2
) -> list[str]:
    """The `most` frequent nouns and noun phrases in English captions, the most frequent first, ties by alphabet.

    captions: lists of strings, one list a row. A concept counts once for each caption it is in, and at least `least`
    captions must hold it. All are in lower case, and singular ("dogs" counts for "dog") where that is a noun too.
    Nouns are found word by word, by `lexicon`, not by grammar. A phrase is two or three words side by side, adjectives,
    participles or nouns and then a noun, that occur together much more often than by chance: normalised pointwise
    mutual information (Bouma 2009, equation 6) of at least 0.5 over captions.
    Raises UserError if the word lists are not installed.
    """
    counts = _Counts()
    for texts in _pieces(captions):
        counts.add(texts)
    ranked = sorted(counts.concepts(least).items(), key=lambda item: (-item[1], item[0]))
    return [name for name, _ in ranked[:most]]


def _pieces(captions: StringLists | Sequence[Sequence[str]]) -> Iterator[pa.Array]:
    """The captions as string arrays of at most `PIECE`, each cut to `LONGEST` characters; broken UTF-8 is replaced."""
    if isinstance(captions, StringLists):
        blob, ends = captions.strings.blob, captions.strings.ends
        for at in range(0, len(ends), PIECE):
            start = int(ends[at - 1]) if at else 0
            own = ends[at : at + PIECE]
            offsets = np.concatenate([[0], own - start]).astype(np.int64)
            values = np.ascontiguousarray(blob[start : int(own[-1])])
            binary = pa.Array.from_buffers(
                pa.large_binary(), len(own), [None, pa.py_buffer(offsets), pa.py_buffer(values)]
            )
            cut = pc.binary_slice(binary, 0, 4 * LONGEST).to_pylist()
            yield pa.array([text.decode("utf-8", "replace")[:LONGEST] for text in cut], pa.string())
        return
    texts = itertools.chain.from_iterable(captions)
    while piece := [text[:LONGEST].encode("utf-8", "replace") for text in itertools.islice(texts, PIECE)]:
        yield pa.array(piece, pa.binary()).cast(pa.string())


def _words(texts: pa.Array) -> tuple[Ints, Ints, list[str]]:
    """Of n captions: the caption (m,) and the number (m,) of each word, and the words; "." where a phrase ends."""
    found = pc.utf8_lower(texts)
    for pattern, instead in (
        (r"['’]s([^\pL]|$)", r" . \1"),  # of the dog's ball: dog, ball
        (r"(^|[\s\pZ])-+([\s\pZ]|$)", " . "),
        (r"[\s\pZ_-]+", " "),
        (r"[^\pL\pM'’ ]+", " . "),
    ):
        found = pc.replace_substring_regex(found, pattern, instead)
    split = pc.split_pattern(pc.utf8_trim(pc.replace_substring_regex(found, " +", " "), " "), " ")
    owner = np.repeat(np.arange(len(texts)), pc.list_value_length(split).to_numpy())
    encoded = pc.list_flatten(split).dictionary_encode()
    return owner, encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


class _Counts:
    """In how many captions each noun, each possible modifier and each possible phrase is."""

    def __init__(self) -> None:
        self.captions = 0
        self.number: dict[str, int] = {}  # of the nouns and modifiers met
        self.nouns: Counter[int] = Counter()
        self.modifiers: Counter[int] = Counter()  # also nouns, as they stand
        self.pairs: Counter[int] = Counter()  # modifier, noun
        self.triples: Counter[int] = Counter()  # modifier, modifier, noun

    def add(self, texts: pa.Array) -> None:
        """Count a piece of the captions."""
        self.captions += len(texts)
        owner, words, names = _words(texts)
        if not len(words):
            return
        kinds, surfaces, lemmas = (entry[words] for entry in self._entries(names))
        noun, usable = kinds == NOUN, kinds != OTHER
        _count(self.nouns, owner[noun], lemmas[noun])
        _count(self.modifiers, owner[usable], surfaces[usable])
        two = usable[:-1] & noun[1:] & (owner[:-1] == owner[1:]) & (lemmas[:-1] != lemmas[1:])
        pairs = surfaces[:-1] << BITS | lemmas[1:]
        _count(self.pairs, owner[:-1][two], pairs[two])
        three = usable[:-2] & two[1:] & (owner[:-2] == owner[1:-1])
        triples = surfaces[:-2] << 2 * BITS | pairs[1:]
        _count(self.triples, owner[:-2][three], triples[three])
        _forget(self.pairs)
        _forget(self.triples)

    def _entries(self, names: Sequence[str]) -> tuple[Ints, Ints, Ints]:
        """Kind, number and number of the singular of each word; words of no use have 0."""
        rows = np.zeros((len(names), 3), np.int64)
        for row, name in zip(rows, names, strict=True):
            word = name.strip("'’")
            kind, lemma = look_up(word)
            if kind != OTHER:
                row[:] = kind, self._numbered(word), self._numbered(lemma)
        return rows[:, 0], rows[:, 1], rows[:, 2]

    def _numbered(self, word: str) -> int:
        return self.number.setdefault(word, len(self.number))

    def concepts(self, least: int) -> dict[str, int]:
        """Each noun and phrase that is in `least` captions, and in how many."""
        words = list(self.number)
        mask = (1 << BITS) - 1
        nouns = {noun: count for noun, count in self.nouns.items() if count >= least}
        pairs = {
            pair: count
            for pair, count in self.pairs.items()
            if count >= least and self._together(count, self.modifiers[pair >> BITS], self.nouns[pair & mask])
        }
        within = (1 << 2 * BITS) - 1
        triples = {
            triple: count
            for triple, count in self.triples.items()
            if count >= least
            and triple & within in pairs
            and self._together(count, self.modifiers[triple >> 2 * BITS], self.pairs[triple & within])
        }
        found = {words[noun]: count for noun, count in nouns.items()}
        found |= {f"{words[pair >> BITS]} {words[pair & mask]}": count for pair, count in pairs.items()}
        for triple, count in triples.items():
            first, second, last = (words[triple >> shift & mask] for shift in (2 * BITS, BITS, 0))
            for part in (f"{first} {second}", f"{second} {last}"):
                if count >= WITHIN * found.get(part, np.inf):
                    del found[part]
            found[f"{first} {second} {last}"] = count
        return found

    def _together(self, both: int, one: int, other: int) -> bool:
        """Whether two events of so many captions, and `both` in one of them, are a phrase."""
        share = both / self.captions
        chance = one / self.captions * (other / self.captions)
        return share >= 1 or bool(np.log(share / chance) >= -TOGETHER * np.log(share))


def _count(counter: Counter[int], owner: Ints, keys: Ints) -> None:
    """Add to each key the number of different owners it has here."""
    distinct, codes = np.unique(keys, return_inverse=True)
    once = np.unique(owner * len(distinct) + codes) % max(len(distinct), 1)
    for key, count in zip(distinct.tolist(), np.bincount(once, minlength=len(distinct)).tolist(), strict=True):
        counter[key] += count


def _forget(counter: Counter[int]) -> None:
    """Keep at most `PHRASES` keys, the rarest go."""
    rare = 1
    while len(counter) > PHRASES:
        for key in [key for key, count in counter.items() if count <= rare]:
            del counter[key]
        rare *= 2
