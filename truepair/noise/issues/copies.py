"""Near-duplicate images: one picture in several rows."""

import numpy as np
from numpy.typing import NDArray

from truepair.noise.issues.alike import groups, near_pairs, stars, twins
from truepair.noise.issues.base import Evidence, Found, Ints, Issue

FULL = 16  # bits at which a score is 0


def bits_of(threshold: float) -> int:
    """The most bits that score at least `threshold`."""
    return int(np.floor(FULL * (1 - threshold) + 1e-6))


def score_of(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """From bits that differ to a score: 1 for none, 0 from FULL on."""
    return (1 - np.minimum(bits, FULL) / FULL).astype(np.float32)


def find(evidence: Evidence, threshold: float) -> Found:
    """Groups by equal bytes and near hashes, each around its best match; the score is that of the nearest copy in it.

    Different images are taken in the order of the best negCLIPLoss among their rows.
    """
    _, first, image = np.unique(evidence.image, return_index=True, return_inverse=True)
    looks = evidence.looks[first]
    shown, kind = np.unique(twins(looks), return_inverse=True)
    kind = kind[image]  # (n,) which of the k looks a row has
    match = np.full(len(shown), -np.inf, np.float32)
    np.fmax.at(match, kind, evidence.neg_clip_loss)
    shown, kind = _in_order(np.argsort(-match, kind="stable"), shown, kind)
    one, other, bits = near_pairs(looks[shown], bits_of(threshold))
    centre = stars(len(shown), one, other)
    together = centre[one] == centre[other]
    best = np.zeros(len(shown), np.float32)
    for side in (one, other):
        np.maximum.at(best, side[together], score_of(bits[together]))
    best[np.bincount(kind, minlength=len(shown)) > 1] = 1.0
    judged = looks.seen[image] | (np.bincount(image)[image] > 1)
    return Found(np.where(judged, best[kind], np.nan).astype(np.float32), groups(centre[kind]))


def _in_order(order: Ints, shown: Ints, kind: Ints) -> tuple[Ints, Ints]:
    """`shown` in another order, and `kind` pointing into that."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return shown[order], rank[kind]


near_duplicate_image = Issue(
    name="near_duplicate_image",
    title="Near-duplicate images",
    explanation=(
        "The same picture stands in more than one row: byte for byte, or re-encoded, resized or slightly retouched. "
        "Copies count several times in training, and in a contrastive batch two copies are each other's false "
        "negatives. Images are compared by a perceptual hash of 64 bits of what the model sees of them (the centre, "
        "where the model cuts) and by the mean colours of their quarters; they are copies up to 4 differing bits, "
        "fewer in symmetric and plain drawings, which have less to tell them by. Crops, mirrored and heavily edited "
        "copies are not found; different drawings in one layout and colour may be taken for copies. Blank images are "
        "compared by their bytes alone. A group is made of the row that matches its caption best and of its copies, "
        "not of copies of copies: that row can be kept for all of them. Where thousands of different images have "
        "hashes that are nearly alike, some copies are missed."
    ),
    score_says=(
        "1 for the same bytes or the same hash, 1/16 less for each bit in which the nearest copy of the group differs; "
        "0: in no group"
    ),
    threshold=0.75,  # 4 bits of 64: ours
    action="merge",
    find=find,
    grouped=True,
)
