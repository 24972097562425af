"""Images that are in a test set too."""

import numpy as np

from truepair.noise.issues.alike import nearest, twins
from truepair.noise.issues.base import Evidence, Found, Issue
from truepair.noise.issues.copies import bits_of, score_of


def find(evidence: Evidence, threshold: float) -> Found:
    """Each row by the nearest image of any second table, 0 if there is none near."""
    score = np.where(evidence.looks.seen, 0, np.nan).astype(np.float32)
    _, first, image = np.unique(evidence.image, return_index=True, return_inverse=True)
    looks = evidence.looks[first]
    shown, kind = np.unique(twins(looks), return_inverse=True)
    kind = kind[image]
    most = bits_of(threshold)
    for second in evidence.seconds:
        theirs = second.looks[np.unique(twins(second.looks))]
        bits = nearest(looks[shown], theirs, most)
        best = np.where(bits <= most, score_of(bits), 0)
        score = np.maximum(score, best[kind])  # NaN stays
        score[second.same_bytes] = 1.0
    return Found(score)


def lacks(evidence: Evidence) -> str:
    return "" if evidence.seconds else "no second table was given (--against TABLE)"


leaked_image = Issue(
    name="leaked_image",
    title="Images that are in a test set",
    explanation=(
        "The image, or a re-encoded or resized copy of it, is also in a table named by --against: who trains on it "
        "cannot be evaluated there. Images are compared as for near-duplicates, both tables at the model's size: by "
        "bytes, by a perceptual hash (up to 4 of 64 bits, fewer in symmetric and plain drawings) and by mean colours. "
        "Crops, mirrored and heavily edited copies are not found; different drawings in one layout and colour may be "
        "taken for copies. The threshold is ours."
    ),
    score_says=(
        "1 for the same bytes or the same hash, 1/16 less for each bit in which the nearest test image differs; 0: "
        "none near"
    ),
    threshold=0.75,
    action="drop",
    find=find,
    lacks=lacks,
)
