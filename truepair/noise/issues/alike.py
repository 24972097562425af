"""Images that look alike among millions: near hashes found without comparing all with all, and the groups they make."""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from truepair.noise.issues.looks import BITS, Looks

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]

NEAR_COLOUR = 16  # largest difference of a quarter's mean colour, of 255 (ours: JPEG of quality 30 moves it by 5)
FEWEST = 4  # bits set in a hash, below which an image is blank to it and the bits are the grain's (ours)
SET_PER_BIT = 6  # bits set for each that may differ: what is symmetric sets few, and those are soon alike (ours)
SMALL = 1 << 17  # images up to which one agreeing part makes a bucket; beyond, two parts
REACH = 8  # comparisons within a bucket that an image is granted, on average
GRANTED = 1 << 20  # comparisons that are granted in any case
AT_ONCE = 1 << 21  # comparisons


def comparable(looks: Looks) -> NDArray[np.bool_]:
    """(n,) whether there is anything in an image by which its hash can tell it."""
    return looks.seen & (np.bitwise_count(looks.hash) >= FEWEST)


def twins(looks: Looks) -> Ints:
    """(n,) the least place of an image with the same hash and colours; its own for those not `comparable`."""
    places = np.flatnonzero(comparable(looks))
    colours = looks.colours[places]
    keys = (
        colours[:, :8].copy().view(np.uint64)[:, 0],
        colours[:, 8:].copy().view(np.uint32)[:, 0],
        looks.hash[places],
    )
    order = np.lexsort(keys)
    begins = np.ones(len(places), bool)
    begins[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    twin = np.arange(len(looks))
    twin[places[order]] = places[order[begins]][np.cumsum(begins) - 1]
    return twin


def near_pairs(looks: Looks, most: int) -> tuple[Ints, Ints, Bits]:
    """Places i < j (E,), (E,) of images that are near each other (`_near`), and the bits in which they differ.

    Of images with one look (`twins`) only one should be given, or their pairs are all there is to find. In the order
    of the hashes an image is compared with the next ones of its bucket: with all of them, unless that makes more than
    REACH comparisons an image and GRANTED in all; then the largest buckets are cut, and of their pairs some are
    missed. Memory: about 100 bytes an image and 24 a pair found.
    """
    usable = np.flatnonzero(comparable(looks))
    usable = usable[np.lexsort((looks.colours[usable].sum(axis=1, dtype=np.int64), looks.hash[usable]))]
    shown = looks[usable]
    codes = np.zeros(0, np.int64)
    for mask in _masks(most, len(shown)):
        key = shown.hash & mask
        order = np.argsort(key, kind="stable")
        found = [codes]
        for first, second, _ in _near(shown[order], shown[order], *_ahead(key[order]), most):
            one, other = order[first], order[second]
            found.append(np.minimum(one, other) * len(shown) + np.maximum(one, other))
        codes = np.unique(np.concatenate(found))
    low, high = np.divmod(codes, max(1, len(shown)))
    bits = np.bitwise_count(shown.hash[low] ^ shown.hash[high])
    return np.minimum(usable[low], usable[high]), np.maximum(usable[low], usable[high]), bits


def nearest(looks: Looks, others: Looks, most: int) -> Bits:
    """(n,) bits in which an image differs from the nearest of `others`, BITS where none is near. None is missed."""
    own, theirs = np.flatnonzero(comparable(looks)), others[np.flatnonzero(comparable(others))]
    shown = looks[own]
    fewest = np.full(len(looks), BITS, np.uint8)
    for mask in _masks(most, len(theirs)):
        key = theirs.hash & mask
        order = np.argsort(key, kind="stable")
        begin, end = (np.searchsorted(key[order], shown.hash & mask, side=side) for side in ("left", "right"))
        for first, _, bits in _near(shown, theirs[order], begin, end, most):
            np.minimum.at(fewest, own[first], bits)
    return fewest


def _masks(most: int, n: int) -> NDArray[np.uint64]:
    """Masks of the bits by which images go into buckets: two near hashes are in one bucket by at least one of them.

    Multi-index hashing (Norouzi et al. 2012, arXiv 1307.2982): of most + k even parts of the 64 bits two hashes that
    differ in at most `most` share at least k; k = 1, or 2 beyond SMALL images.
    """
    shared = 1 if n <= SMALL else 2
    count = most + shared
    edges = [BITS * part // count for part in range(count + 1)]
    parts = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return np.array([sum(chosen) for chosen in combinations(parts, shared)], np.uint64)


def _ahead(key: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """(n,), (n,): the places from … to - 1 that each of the sorted keys is compared with, after its own."""
    edges = np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1, [len(key)]])
    size = np.diff(edges)
    reach = int(size.max(initial=0))
    granted = max(GRANTED, REACH * len(key))
    while reach > REACH and (size * np.minimum(size, reach)).sum() > granted:
        reach = max(REACH, reach // 2)
    begin = np.arange(1, len(key) + 1)
    return begin, np.minimum(np.repeat(edges[1:], size), begin + reach)


def _near(looks: Looks, others: Looks, begin: Ints, end: Ints, most: int) -> Iterator[tuple[Ints, Ints, Bits]]:
    """Places i, j, begin[i] <= j < end[i], of near images of both, and the differing bits; some millions at a time.

    Near: at most `most` bits differ, SET_PER_BIT times as many are set in both, and no colour differs by more than
    NEAR_COLOUR.
    """
    count = end - begin
    total = np.cumsum(count)
    start = 0
    while start < len(count):
        done = total[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(total, done + AT_ONCE, side="right")))
        here = slice(start, stop)
        first = np.repeat(np.arange(start, stop), count[here])
        second = np.arange(len(first)) + np.repeat(begin[here] - (total[here] - count[here] - done), count[here])
        bits = np.bitwise_count(looks.hash[first] ^ others.hash[second])
        close = np.flatnonzero(bits <= most)
        first, second, bits = first[close], second[close], bits[close]
        fewer = np.minimum(np.bitwise_count(looks.hash[first]), np.bitwise_count(others.hash[second]))
        apart = np.abs(looks.colours[first].astype(np.int16) - others.colours[second]).max(axis=1, initial=0)
        near = (SET_PER_BIT * bits <= fewer) & (apart <= NEAR_COLOUR)
        yield first[near], second[near], bits[near]
        start = stop


def stars(n: int, low: Ints, high: Ints) -> Ints:
    """(n,) the centre of each place's star, in a graph with edges low < high: a star is a centre and neighbours of it.

    Taken in order, a place is the centre of a star unless it is a neighbour of an earlier centre; it then belongs to
    the first of these. Every round decides on all places whose earlier neighbours have been decided on.
    """
    beside = np.zeros(n, bool)  # a neighbour of a centre
    waits = np.zeros(n, bool)
    one, other = low, high
    while len(one):
        waits[other] = True
        beside[other[~waits[one]]] = True
        waits[other] = False
        still_open = ~beside[one] & ~beside[other]
        one, other = one[still_open], other[still_open]
    centre = np.arange(n)
    from_centre = ~beside[low]
    np.minimum.at(centre, high[from_centre], low[from_centre])
    return centre


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
    """(n,) the labels of `components` or `stars`, -1 where a part has a single member."""
    size = np.bincount(label, minlength=len(label))
    return np.where(size[label] > 1, label, -1)
