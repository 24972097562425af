"""Which English words are mostly nouns, by two word lists that come with Python packages.

The rule (ours). The word list of Brill's tagger (1992; 94,000 words of the Brown corpus and the Penn Treebank, which
textblob carries under the MIT licence) says what a word is most often: "dog" is a noun and "red" none, though any
dictionary knows "to dog" and "the red". For words it lacks, the SPECIALIST lexicon (which lemminflect carries, MIT)
says what they can be. SPECIALIST also gives the singular. A word that neither knows is no noun: names, new words
("selfie") and misspellings are lost, and can be had by a list of one's own.
"""

import importlib
import importlib.util
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from truepair.errors import UserError

OTHER, MODIFIER, NOUN = 0, 1, 2
KNOWN = 1 << 18  # words whose entries are kept
SHORTEST, LONGEST = 2, 40  # letters of a noun
NOUNS = frozenset({"NN", "NNS"})
MODIFIERS = frozenset({"JJ", "VBG", "VBN"})  # "hot" air, "smiling" face, "stuffed" animal
# Nouns by form that name nothing to be seen: of the picture itself, of quantity, of place, of time (ours).
_UNSEEN = """
image photo photograph picture view closeup stock vector illustration lot lots kind type sort part way number
thing things something anything nothing someone anyone everyone set bit piece pair couple group bunch variety
front back top bottom side middle center left right end size shape style use time day year today
one ones other others please click download
"""
UNSEEN = frozenset(_UNSEEN.split())

PLURAL = frozenset({"pants", "fries", "shorts", "jeans"})  # whose singular is another thing (ours)


class Entry(NamedTuple):
    """What a word is: OTHER, MODIFIER or NOUN, and for a noun its singular (else the word itself)."""

    kind: int
    lemma: str


@lru_cache(KNOWN)
def look_up(word: str) -> Entry:
    """The entry of a lower-case word. Raises UserError if the word lists are not installed."""
    if not SHORTEST <= len(word) <= LONGEST:
        return Entry(OTHER, word)
    tag = _tags().get(word, "")
    if tag in MODIFIERS:
        return Entry(MODIFIER, word)
    if tag and tag not in NOUNS:
        return Entry(OTHER, word)
    forms = _forms(word)
    if not tag and ("NOUN" not in forms or "ADJ" in forms):
        return Entry(MODIFIER if "ADJ" in forms else OTHER, word)
    lemma = _singular(word, forms.get("NOUN", ()))
    return Entry(MODIFIER if word in UNSEEN or lemma in UNSEEN else NOUN, lemma)


def _singular(word: str, lemmas: tuple[str, ...]) -> str:
    """The word itself where it is no plural, or one whose singular is another word or mostly no noun."""
    if not lemmas or word in lemmas or word in PLURAL:
        return word
    return lemmas[0] if _tags().get(lemmas[0], "NN") in NOUNS else word


def _forms(word: str) -> dict[str, tuple[str, ...]]:
    """Part of speech -> base forms; {} for a word that the lexicon lacks."""
    forms: dict[str, tuple[str, ...]] = importlib.import_module("lemminflect").getAllLemmas(word)
    return forms


@cache
def _tags() -> dict[str, str]:
    """Lower-case word -> its most frequent tag (Penn Treebank's). A word's lower-case spelling goes first."""
    textblob, lemminflect = importlib.util.find_spec("textblob"), importlib.util.find_spec("lemminflect")
    if textblob is None or textblob.origin is None or lemminflect is None:
        raise UserError(
            "to find the nouns of captions, English word lists are needed: pip install 'truepair[concepts]'; "
            "or name concepts of your own, one a line (concepts --list FILE, nlip's --options.concept-list FILE)"
        )
    tags: dict[str, str] = {}
    lines = (Path(textblob.origin).parent / "en" / "en-lexicon.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split()[:2] for line in lines if line.strip() and not line.startswith(";;;")]
    for word, tag in pairs:
        if word[0].isupper() and tag in NOUNS:
            tags[word.lower()] = tag
    tags.update((word, tag) for word, tag in pairs if word.islower())
    return tags
