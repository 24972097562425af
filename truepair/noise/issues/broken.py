"""Broken, blank and useless images."""

import numpy as np

from truepair.noise.issues.base import Evidence, Found, Issue

FLAT = 2.0  # standard deviation of the pixels, of 255, of an image half as blank as can be (ours)
LONG = 10  # times the shorter side: an image half as bad as can be (ours; DataComp's basic filter has 3)
TINY = 16  # pixels of the shorter side, likewise (ours; DataComp's has 200)


def find(evidence: Evidence, threshold: float) -> Found:
    """The worst of: not decodable (1), blank, extremely long, tiny."""
    looks = evidence.looks
    spread = looks.spread.astype(np.float64)
    blank = np.where(looks.seen, FLAT / (FLAT + spread), 0.0)
    width, height = np.maximum(evidence.width, 1), np.maximum(evidence.height, 1)
    short, long = np.minimum(width, height), np.maximum(width, height)
    aspect = long / short
    score = np.maximum.reduce([blank, aspect / (aspect + LONG), 1 - short / (2 * TINY), evidence.undecodable])
    score[~(looks.seen | evidence.undecodable)] = np.nan
    return Found(score.astype(np.float32))


broken_image = Issue(
    name="broken_image",
    title="Broken or blank images",
    explanation=(
        "The image cannot be decoded (damaged, or so large that it may be a decompression bomb: the column "
        "“problem” says which), or there is nothing to see: its pixels hardly vary, one side is at least 10 times the "
        "other, or the shorter side has 16 pixels or fewer. Blankness is judged by what the model sees (the centre, "
        "where the model cuts), sides by the whole image. All limits are ours and mild: DataComp's basic filter (arXiv "
        "2304.14108) keeps images of at least 200 pixels and of an aspect ratio below 3."
    ),
    score_says=(
        "1: cannot be decoded; else the worst of 2/(2 + d) for a standard deviation d of the pixels, a/(a + 10) for an "
        "aspect ratio a, and 1 - s/32 for a shorter side of s pixels"
    ),
    threshold=0.5,
    action="drop",
    find=find,
)
