"""Words of a caption as COCO's evaluation counts them: Penn Treebank's, in lower case, without punctuation marks."""

import re
from functools import lru_cache

MAX_CHARACTERS = 4_096  # of a caption; bounds the work on a hostile one

REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])  # COCO's list, as it acts
BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}  # not on that list
)
WRITTEN = {
    **{'"': "''", "\u20ac": "$", "\u00a3": "#", "\u00a2": "cents", "\u2026": "...", "\u2014": "--", "\u2013": "--"},
    **{"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">"},
}
PLAINER = str.maketrans(
    dict.fromkeys("\u2018\u201b\u2039\u203a", "'")
    | dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"')
    | dict.fromkeys("\ufeff\ufe0f\u200b\u20b9", " ")
    | {"\u00ad": None}
)
ENTITIES = {"&quot;": '"', "&apos;": "'", "&nbsp;": " "}
BEYOND = re.compile("[\U00010000-\U0010ffff]")  # most emoji: the tokenizer does not know them

# Abbreviations keep their full stop; some only with a capital, some only before a number.
ABBREVIATIONS = """
    adj adm adv al ala apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col
    colo comdr conn corp cpl ct dec dept det dr drs elec est etc ext feb fla fri ft ga gen gov hon inc ind intl jan
    jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms mt mtg
    natl neb nev nov oct okla p penn pfc ph.d plc pres prof profs pte pty pvt rd rep reps rev rt sen sens sept sfc
    sgt spc sq sr st ste supt tel tenn thu thurs treas tue tues univ v va vs vt wed wis wm wyo
"""
NAMES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
BEFORE_NUMBER = "art ca fig no nos op pp prop"


def _any(names: str) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, names.split()), key=len, reverse=True)) + ")"


ACROSS = re.compile(
    rf"<|\b{_any(BEFORE_NUMBER)}\.\s", re.IGNORECASE
)  # here a word may depend on the next: "No. 5", <a b>
QUOTE = "['\u2019]"  # \u2019 is the apostrophe of typeset text
LETTER = r"[^\W\d_]"
CHARACTER = (  # letters, digits, and the marks that other scripts set on them
    r"(?:[^\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2153\u2154]"
    r"|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0981-\u0dff\u0e31-\u0e4e])"
)
WORD = rf"{CHARACTER}+(?:[-/_\u2010\u2011]{CHARACTER}+)*"

TOKEN = re.compile(
    rf"""
      https?://[^\s"<>|()]+[^\s"<>|().!?,;:-]
    | (?:www\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|org|net|edu|gov)\b(?:/[^\s"<>|()]*)?
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)* | [@\#]{LETTER}\w*
    | </?[a-z!?][^<>\n]*>                                                  # markup
    | &(?:amp|lt|gt); | &\#\d+;
    | (?:can(?=not)|gon(?=na)|got(?=ta)|wan(?=na)|gim(?=me)|lem(?=me)|{QUOTE}t(?=is|was))(?=[a-z]{{2,3}}(?![\w-]))
    | {CHARACTER}+(?=n['\u2019`]t(?!\w)) | n['\u2019`]t(?!\w) | {QUOTE}(?:s|m|d|ll|re|ve)(?!\w)
    | {QUOTE}(?:em|til|cause|n)(?!\w){QUOTE}? | (?<!\d){QUOTE}\d\ds?(?!\w)
    | y{QUOTE}(?=all\b) | o{QUOTE}clock | ma{QUOTE}am | c{QUOTE}mon | (?:ol|somethin|dunkin){QUOTE}(?!\w)
    | [dlojs]{QUOTE}(?={LETTER}){WORD}
    | (?<!\w)[+-]?(?:\d+(?:[.,:/]\d+)+|\.\d+)(?:-\d+(?:/\d+)?)?(?:[-/]{CHARACTER}+)* | [+-]\d+(?!\w) | :\d+
    | {_any(ABBREVIATIONS)}\.(?!\w) | (?-i:{_any(NAMES)})\.(?!\w) | {_any(BEFORE_NUMBER)}\.(?=\s*\d)
    | (?<!\w){LETTER}(?:\.{LETTER})*\.(?!\w) | (?<!\w){LETTER}(?:\.{LETTER})+(?!\w)  # initials
    | {CHARACTER}+(?:[.!?]{LETTER}+)+(?!['\w])                             # a space forgotten: "cat.The"
    | (?-i:[A-Z]+(?:&[A-Z]+)+|(?:US|HK|NZ|A|C)\$) | c(?:\+\+|\#)
    | \d+-\d+/\d+ | {WORD}
    | :['\u2019]?-?[()] | ;-?[()] | =[()] | [:=][dp|](?!\w)
    | -{{2,}} | \.{{3,}} | [!?]{{2,}} | ''|`` | \*{{2,}} | @{{2,}} | \#{{2,}} | _{{2,}}
    | [^\s\w] | _ | [\u00b2\u00b3\u00b9\u00bc-\u00be\u2153\u2154]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_words(caption: str) -> list[str]:
    """The words of one caption, as COCO's evaluation gets them from Stanford's PTBTokenizer 3.4.1 with -lowerCase.

    Contractions are two words ("do", "n't"), hyphenated words and numbers one, marks of punctuation none. Brackets,
    signs and repeated marks ("!!") stay, since COCO's list of what it removes does not have them. Captions are cut
    after 4,096 characters.
    Written anew from what that program gives; docs/evaluation.md says how often the two agree, and where not.
    """
    text = caption[:MAX_CHARACTERS].translate(PLAINER)
    for entity, sign in ENTITIES.items():
        text = text.replace(entity, sign)
    text = BEYOND.sub(" ", text)
    if ACROSS.search(text):
        return _words(text)
    return [word for piece in text.split() for word in _words_of_piece(piece)]


def _words(text: str) -> list[str]:
    return [word for word in map(_written, TOKEN.findall(text)) if word not in REMOVED]


@lru_cache(1 << 14)  # captions repeat their words
def _words_of_piece(piece: str) -> list[str]:
    return _words(piece)


def _written(token: str) -> str:
    if token in WRITTEN:
        return WRITTEN[token]
    if token[0] in "\u2019nN" and token[-1] != "\u2019":  # 's and n't; "o\u2019clock" keeps its sign
        token = token.replace("\u2019", "'")
    if token.startswith(("---", "....")):
        return "--" if token[0] == "-" else "..."
    return "'" if token == "\u2019" else token.lower().translate(BRACKETS)
