"""Captions in another language than the table's: by script, and by the small words of a few languages."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from truepair.noise.issues.base import Evidence, Found, Issue
from truepair.noise.issues.text import SCRIPTS, pieces, scripts, words
from truepair.pairs.columns import StringLists

Ints = NDArray[np.int64]

CLEAR = 2  # different small words by which a language must lead to be told (ours): names bring one or two
SPOKEN = 0.05  # of the captions of a script, from which on one language is expected of all of them (ours)
FEWEST_LETTERS = 3  # below which its script is not (ours)
SAMPLED = 1 << 20  # rows of a table whose captions say which language is expected, about
KANA_SHARE = 0.05  # of a caption's East Asian letters, from which on its Han letters are Japanese (ours)

# Language -> its script and the small words that a sentence can hardly do without (ours). Of Latin letters none stands
# alone: they are initials, vitamins and the English I as well.
LANGUAGES: dict[str, tuple[str, str]] = {
    "en": (
        "LATIN",
        "the of and an in on at is are was with for from to by this that it its his her their as near over under not "
        "no or but be been has have had do does he she you we they me my our your what when where which who how so all "
        "will can if then than out up",
    ),
    "de": (
        "LATIN",
        "der die das und ein eine einen einem einer im in auf mit ist sind von zu den dem des für nicht bei über nach",
    ),
    "fr": (
        "LATIN",
        "le la les un une des du de et est sont dans sur avec pour au aux par en qui que ce cette son sa ses pas ou il",
    ),
    "es": (
        "LATIN",
        "el la los las un una unos de del es son en con para por al se su sus que sobre como más entre desde lo está",
    ),
    "pt": (
        "LATIN",
        "os as um uma uns de do da dos das são em no na nos nas com para por ao que seu sua não mais entre pelo pela "
        "está",
    ),
    "it": (
        "LATIN",
        "il lo la gli le un una uno di del della dei delle sono in nel nella con per su sul da dal che al alla non si",
    ),
    "nl": ("LATIN", "de het een van en in op met is zijn voor aan bij naar uit dat die niet te om over ook er"),
    "pl": (
        "LATIN",
        "we ze na do od po za przed przy jest są nie się dla oraz przez pod nad jego jej ten ta to jak ale",
    ),
    "sv": ("LATIN", "och en ett den det de på med av för till från är som vid mot under över sin inte har om"),
    "tr": ("LATIN", "ve bir bu ile için olan olarak da de gibi daha çok en üzerinde altında var yok ne şu"),
    "id": ("LATIN", "yang dan di ke dari ini itu untuk dengan pada adalah dalam oleh sebuah tidak akan seorang atau"),
    "ru": ("CYRILLIC", "и в во на с со не что это по за из у к от для как его её их над под при до о об он она"),
    "uk": ("CYRILLIC", "і й в у на з із зі не що це по за до від для як його її їх над під при та або він вона"),
    "el": ("GREEK", ""),
    "he": ("HEBREW", ""),
    "ar": ("ARABIC", ""),
    "hi": ("DEVANAGARI", ""),
    "bn": ("BENGALI", ""),
    "ta": ("TAMIL", ""),
    "th": ("THAI", ""),
    "ko": ("HANGUL", ""),
    "zh": ("HAN", ""),
    "ja": ("KANA", ""),
}
_NAMES = tuple(LANGUAGES)
_HAN, _KANA = SCRIPTS.index("HAN"), SCRIPTS.index("KANA")


def find(evidence: Evidence, threshold: float) -> Found:
    """The best of a row's captions counts, each by the worse of its letters and its small words."""
    score = np.full(len(evidence), np.nan, np.float32)
    script, language = _expected(evidence.language, evidence.captions)
    for piece in pieces(evidence.captions):
        letters, small = _counted(piece.texts)
        worse = np.fmax(_foreign_share(letters, script), _lead(small, language))
        np.fmin.at(score, piece.owner, worse.astype(np.float32))
    return Found(score)


def _counted(texts: pa.Array) -> tuple[Ints, Ints]:
    """Letters (m, scripts) and different small words (m, languages) of each text.

    Han letters of a Japanese text count as kana.
    """
    letters = scripts(texts)
    east = letters[:, _HAN] + letters[:, _KANA]
    japanese = letters[:, _KANA] > KANA_SHARE * east
    letters[japanese, _KANA], letters[japanese, _HAN] = east[japanese], 0
    letters[:, 0] = 0
    known, languages = _small_words()
    of_text, said = words(texts)
    place = pc.index_in(said, value_set=known)
    hit = np.asarray(pc.is_valid(place))
    each = np.unique(of_text[hit] * len(known) + np.asarray(pc.drop_null(place)))
    of_text, word = np.divmod(each, len(known))
    hits, language = np.nonzero(languages[word])
    small = np.bincount(of_text[hits] * len(_NAMES) + language, minlength=len(texts) * len(_NAMES))
    return letters, small.reshape(len(texts), len(_NAMES))


def _small_words() -> tuple[pa.Array, NDArray[np.bool_]]:
    """All small words (v,), and which languages (v, languages) have each."""
    of = [set(text.split()) for _, text in LANGUAGES.values()]
    known = sorted(set().union(*of))
    return pa.array(known, pa.large_string()), np.array([[word in has for has in of] for word in known])


def _expected(name: str, captions: StringLists) -> tuple[int, int]:
    """Script and language (-1: none) that captions should be in: those of `name`, else of most of a sample of them.

    A caption tells its language by CLEAR small words, more than any other language has in it; a language is expected
    where it is that of most captions that tell, and of at least SPOKEN of all in its script.
    """
    if name:
        named, text = LANGUAGES[name]
        return SCRIPTS.index(named), _NAMES.index(name) if text else -1
    votes, told = np.zeros(len(SCRIPTS), np.int64), np.zeros(len(_NAMES), np.int64)
    for piece in pieces(captions, every=max(1, len(captions) // SAMPLED)):
        letters, small = _counted(piece.texts)
        votes += np.bincount(letters[letters.any(axis=1)].argmax(axis=1), minlength=len(SCRIPTS))
        most = small.max(axis=1, keepdims=True)
        tells = (most[:, 0] >= CLEAR) & ((small == most).sum(axis=1) == 1)
        told += np.bincount(small[tells].argmax(axis=1), minlength=len(_NAMES))
    script = int(votes.argmax())
    told[[SCRIPTS.index(of) != script for of, _ in LANGUAGES.values()]] = 0
    spoken = 2 * told.max() > told.sum() and told.max() >= SPOKEN * votes[script]
    return script, int(told.argmax()) if spoken else -1


def _foreign_share(letters: Ints, script: int) -> NDArray[np.float64]:
    """(m,) share of the letters that are not of the script, NaN for a text with too few letters."""
    total = letters.sum(axis=1)
    own = letters[:, script] + (letters[:, _HAN] if script == _KANA else 0)
    return np.where(total >= FEWEST_LETTERS, 1 - own / np.maximum(total, 1), np.nan)


def _lead(small: Ints, language: int) -> NDArray[np.float64]:
    """(m,) (b - a)/b, a the small words of the language, b those of the best other one, 0 unless b leads by CLEAR.

    NaN where no language is told.
    """
    if language < 0:
        return np.full(len(small), np.nan)
    own = small[:, language].astype(np.float64)
    other = np.delete(small, language, axis=1).max(axis=1, initial=0).astype(np.float64)
    lead = np.where(other - own >= CLEAR, (other - own) / np.maximum(other, 1), 0)
    return np.where(np.maximum(own, other) >= CLEAR, lead, np.nan)


wrong_language = Issue(
    name="wrong_language",
    title="Captions in another language",
    explanation=(
        "The caption is not in the language of the table: that of most captions, or the one named by "
        "--expect-language. Most of its letters are of another script, or its small words (the, und, les) are another "
        "language's. Scripts are told by the letters' Unicode names. Languages of one script are told by 20 to 60 "
        "small words each of English, German, French, Spanish, Portuguese, Italian, Dutch, Polish, Swedish, Turkish, "
        "Indonesian, Russian and Ukrainian: a caption without a lead of two different ones (“red apple”, “pomme "
        "rouge”), or in any other language, is not told apart; one with several names of another language may be taken "
        "for it. Where fewer than 5% of the captions tell a language, only scripts are judged. Chinese is told from "
        "Japanese by kana only. A name in another script is not flagged while it is the lesser part of the letters. "
        "Where the model reads the language, keep it. Method and thresholds are ours."
    ),
    score_says=(
        "share of the letters that are of another script; or, if more, (b - a)/b for a different small words of the "
        "expected language and b, at least a + 2, of the best other one"
    ),
    threshold=0.5,
    action="review",
    find=find,
)
