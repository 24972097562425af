"""Incomplete captions: too short to say anything, or far less fitting than what a captioner wrote."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from truepair.noise.issues.base import DOUBTED, Evidence, Found, Issue
from truepair.noise.issues.text import pieces, words

MARGIN = (
    2.0  # logits by which a synthetic caption must fit better, e² ≈ 7 times as likely; as --completion.margin (ours)
)
ADDRESS = r"(?i)\b(https?://|www\.)\S+"
CAMERA = (
    r"^(img|image|dsc|dscn|dscf|dcim|p|pict|pic|photo|mvc|gopr|vid|scan|screenshot|wp|pxl|untitled)?[0-9]+\p{L}{0,2}$"
)
MARKS = r"\p{M}+"
SHARED = (
    "\u30fc\uff70\uff9e\uff9f\u3006"  # Japanese, but by Unicode of no one script: the signs of length and voice, 〆
)
UNSPACED = rf"[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}{SHARED}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]"
EMPTY_WORDS = """
    image images img photo photos picture pictures pic pics photograph thumbnail thumb thumbs icon logo banner file
    jpg jpeg png gif webp bmp svg tiff untitled unnamed unknown none null nan undefined default placeholder alt
    caption title description no not available coming soon click here enlarge zoom full size preview next previous
    avatar profile user screenshot screen shot scan a an the of in on at to for from by with and or is it this that
    my your our
"""


def find(evidence: Evidence, threshold: float) -> Found:
    """The better of a row's captions counts, 1/(1 + w) of w words that say something; then the synthetic one's lead."""
    score = np.full(len(evidence), np.nan, np.float32)
    empty = pa.array(EMPTY_WORDS.split(), pa.large_string())
    for piece in pieces(evidence.captions):
        texts = pc.replace_substring_regex(piece.texts, pattern=ADDRESS, replacement=" ")
        bare = pc.replace_substring_regex(texts, pattern=MARKS, replacement="")
        unspaced = np.asarray(pc.count_substring_regex(bare, pattern=UNSPACED))
        of_text, said = words(pc.replace_substring_regex(texts, pattern=UNSPACED, replacement=" "))
        filler = pc.or_(pc.is_in(said, value_set=empty), pc.match_substring_regex(said, pattern=CAMERA))
        count = np.bincount(of_text[~np.asarray(filler)], minlength=len(texts))
        np.fmin.at(score, piece.owner, (1 / (1 + count + (unspaced + 1) // 2)).astype(np.float32))
    if evidence.synthetic is not None:
        trusted = ~(evidence.p_noise >= DOUBTED)
        lead = evidence.scale * (evidence.synthetic.astype(np.float64) - evidence.cosine) - MARGIN
        better = np.where(trusted, 1 / (1 + np.exp(np.clip(-lead, -60, 60))), np.nan)
        score = np.fmax(score, better.astype(np.float32))
    return Found(score)


incomplete_caption = Issue(
    name="incomplete_caption",
    title="Incomplete captions",
    explanation=(
        "The caption says next to nothing: no word, one word, or only words such as “image”, a file name of a camera, "
        "digits or an address. In scripts without blanks two characters count as a word, an odd one too, marks not; "
        "the filler words are English. Of several captions the best counts. If the table has synthetic captions "
        "(truepair caption), pairs that are not doubted are flagged too where the image fits its synthetic caption at "
        "least e² ≈ 7 times better, by the audit's own model. One true word (“dog”) is flagged like one that says "
        "nothing: such captions need more words, not dropping. All limits are ours; DataComp's basic filter (arXiv "
        "2304.14108) drops captions of two words or fewer."
    ),
    score_says=(
        "1/(1 + w) for w words that say something: 1 for none, ½ for one; or, if more, the logistic function of the "
        "synthetic caption's lead in logits less 2"
    ),
    threshold=0.5,
    action="recaption",
    find=find,
)
