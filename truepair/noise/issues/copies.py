"""Near-duplicate images: one picture in several rows."""

import numpy as np
from numpy.typing import NDArray

from truepair.noise.issues.alike import components, groups, near_pairs
from truepair.noise.issues.base import Evidence, Found, Issue

FULL = 16  # bits at which a score is 0


def bits_of(threshold: float) -> int:
    """The most bits that score at least `threshold`."""
    return int(np.floor(FULL * (1 - threshold) + 1e-6))


def score_of(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """From bits that differ to a score: 1 for none, 0 from FULL on."""
    return (1 - np.minimum(bits, FULL) / FULL).astype(np.float32)


def find(evidence: Evidence, threshold: float) -> Found:
    """Groups by equal bytes and near hashes; the score of a row is that of its nearest copy, 0 without one."""
    _, first, image = np.unique(evidence.image, return_index=True, return_inverse=True)
    one, other, bits = near_pairs(evidence.looks[first], bits_of(threshold))
    best = np.zeros(len(first), np.float32)
    for side in (one, other):
        np.maximum.at(best, side, score_of(bits))
    repeated = np.bincount(image, minlength=len(first)) > 1
    best[repeated] = 1.0
    label = components(len(first), one, other)
    judged = evidence.looks.seen | repeated[image]
    return Found(np.where(judged, best[image], np.nan).astype(np.float32), groups(label[image]))


near_duplicate_image = Issue(
    name="near_duplicate_image",
    title="Near-duplicate images",
    explanation=(
        "The same picture stands in more than one row: byte for byte, or re-encoded, resized or slightly retouched. "
        "Copies count several times in training, and in a contrastive batch two copies are each other's false "
        "negatives. Images are compared by a perceptual hash of 64 bits of what the model sees of them (the centre, "
        "where the model cuts) and by the mean colours of their quarters; they are copies up to 4 differing bits. "
        "Crops, mirrored and heavily edited copies are not found; different drawings in one layout and colour may be"
        " taken for copies. Blank images are compared by their bytes alone. Of a group, one row can be kept: the one"
        " that matches its caption best."
    ),
    score_says=(
        "1 for the same bytes or the same hash, 1/16 less for each bit in which the nearest copy differs; 0: no copy"
    ),
    threshold=0.75,  # 4 bits of 64: ours
    action="merge",
    find=find,
    grouped=True,
)
