"""Images that look alike among millions: near hashes found without comparing all with all, and the groups they make."""

from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from truepair.noise.issues.looks import BITS, Looks

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

NEAR_COLOUR = 16  # largest difference of a quarter's mean colour, of 255 (ours: JPEG of quality 30 moves it by 5)
FLAT = 2.0  # spread below which an image is blank and its hash is the rounding's (ours)
SMALL = 1 << 17  # images up to which one agreeing part makes a bucket; beyond, two parts
REACH = 64  # places further on in a bucket that an image is compared with
CROWD, CROWD_REACH = 4096, 8  # a bucket with more images is a degenerate one: fewer comparisons, chained by neighbours


def near_pairs(looks: Looks, most: int) -> tuple[Ints, Ints, NDArray[np.uint8]]:
    """Places i < j (E,), (E,) of images with near colours whose hashes differ in at most `most` bits; how many.

    Unseen and blank images are in no pair. Multi-index hashing (Norouzi et al. 2012, arXiv 1307.2982): of most + k
    parts of the 64 bits two such hashes share at least k, so images that share k parts are compared (k = 1, or 2
    beyond SMALL images). Within such a bucket, in the order of the hashes, an image is compared with the next REACH,
    in a crowd with the next CROWD_REACH: there pairs may be missed, but not neighbours. Without crowded buckets no
    pair is missed. Memory: about 100 bytes an image and 24 a pair found.
    """
    usable = np.flatnonzero(looks.seen & (looks.spread >= FLAT))
    usable = usable[np.lexsort((looks.colours[usable].sum(axis=1, dtype=np.int64), looks.hash[usable]))]
    hashes, colours = looks.hash[usable], looks.colours[usable].astype(np.int16)
    shared = 1 if len(usable) <= SMALL else 2
    codes = np.zeros(0, np.int64)
    for chosen in combinations(_parts(most + shared), shared):
        key = hashes & np.bitwise_or.reduce(np.array(chosen, np.uint64))
        order = np.argsort(key, kind="stable")
        first, second = _in_buckets(key[order], hashes[order], most)
        first, second = order[first], order[second]
        alike = np.abs(colours[first] - colours[second]).max(axis=1, initial=0) <= NEAR_COLOUR
        low, high = np.minimum(first[alike], second[alike]), np.maximum(first[alike], second[alike])
        codes = np.union1d(codes, low * len(usable) + high)
    low, high = np.divmod(codes, max(1, len(usable)))
    bits = np.bitwise_count(hashes[low] ^ hashes[high])
    return np.minimum(usable[low], usable[high]), np.maximum(usable[low], usable[high]), bits


def _parts(count: int) -> list[int]:
    """Masks of `count` parts of 64 bits, as even as can be."""
    edges = [BITS * part // count for part in range(count + 1)]
    return [(1 << end) - (1 << start) for start, end in pairwise(edges)]


def _in_buckets(key: Hashes, hashes: Hashes, most: int) -> tuple[Ints, Ints]:
    """Places of pairs with the same key (sorted) whose hashes differ in at most `most` bits."""
    edges = np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1, [len(key)]])
    size = np.diff(edges)
    last = np.repeat(edges[1:], size) - 1
    reach = np.repeat(np.where(size > CROWD, CROWD_REACH, REACH), size)
    last = np.minimum(last, np.arange(len(key)) + reach)
    found: list[tuple[Ints, Ints]] = []
    here = np.arange(len(key))
    for step in range(1, REACH + 1):
        here = here[here + step <= last[here]]
        if not len(here):
            break
        near = here[np.bitwise_count(hashes[here] ^ hashes[here + step]) <= most]
        found.append((near, near + step))
    none = np.zeros(0, np.int64)
    return (
        np.concatenate([none, *(first for first, _ in found)]),
        np.concatenate([none, *(second for _, second in found)]),
    )


def components(n: int, first: Ints, second: Ints) -> Ints:
    """(n,) the least place of each one's connected part, of a graph with edges (first, second); singles are their own.

    Labels travel along the edges and along each other until nothing changes: a number of rounds that grows as log n.
    """
    label = np.arange(n)
    while True:
        open_edges = label[first] != label[second]
        first, second = first[open_edges], second[open_edges]
        if not len(first):
            return label
        one, other = label[first], label[second]
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while True:
            further = label[label]
            if np.array_equal(further, label):
                break
            label = further


def groups(label: Ints) -> Ints:
    """(n,) the labels of `components`, -1 where a part has a single member."""
    size = np.bincount(label, minlength=len(label))
    return np.where(size[label] > 1, label, -1)
