"""Pairs up rows whose captions are close in meaning, for noise that is hard to tell (the `near` kind of injection).

Meaning is approximated by words and parts of words: a word is a bundle of hashed features (itself and its character
trigrams), a row the TF-IDF weighted sum of the words of all its captions, as a unit vector. Rows are first divided
into blocks of similar rows, then paired within a block, nearest first; so time is N·BLOCK and memory N·WIDTH, never
N². All of it is ours.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Matrix = NDArray[np.float32]

WIDTH = 256  # features a caption is hashed into
BLOCK = 2048  # rows compared with each other; even, so that halving leaves nobody alone
WORDS_AT_ONCE = 1 << 16


def word_vectors(captions: Sequence[Sequence[str]]) -> Matrix:
    """Unit TF-IDF vectors (N, WIDTH) float32 of rows of captions; a row without a word is zero."""
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    lengths = np.zeros(len(captions), dtype=np.int64)
    for row, texts in enumerate(captions):
        found = re.findall(r"\w+", " ".join(texts).casefold())
        lengths[row] = len(found)
        words.extend(vocabulary.setdefault(word, len(vocabulary)) for word in found)
    word = np.array(words, dtype=np.int64)
    row_of = np.repeat(np.arange(len(captions)), lengths)

    both = np.unique(row_of * max(1, len(vocabulary)) + word)  # one number for each (row, word)
    documents = np.bincount(both % max(1, len(vocabulary)), minlength=len(vocabulary))
    rarity = np.log((1 + len(captions)) / (1 + documents)).astype(np.float32) + 1
    features = _features(list(vocabulary)) * rarity[:, None]

    vectors = np.zeros((len(captions), WIDTH), dtype=np.float32)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(captions):
        begin = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + WORDS_AT_ONCE, side="right")))
        rows = first + np.flatnonzero(lengths[first:last])
        if len(rows):
            starts = ends[rows] - lengths[rows] - begin
            vectors[rows] = np.add.reduceat(features[word[begin : ends[last - 1]]], starts, axis=0)
        first = last
    return unit_rows(vectors)


def unit_rows(vectors: NDArray[np.floating[Any]]) -> Matrix:
    """Rows (N, D) scaled to length 1 as float32; rows of zeros, or with a number that is not finite, become zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 0)
    unit: Matrix = (np.where(usable, vectors, 0) / np.where(usable, length, 1)).astype(np.float32)
    return unit


def nearest_partners(vectors: Matrix, images: Ints, texts: Ints) -> Ints:
    """For each row the row it is paired with, (N,): a permutation that moves every row if N >= 2, mostly by swaps.

    vectors: (N, D) unit rows. images, texts: (N,) ids; rows with the same image or the same text are not paired with
    each other, for such a swap makes no noise. Rows that find nobody (all others alike) pass their places on in a
    circle, whatever they are.
    """
    partner = np.arange(len(vectors))
    for rows in similar_blocks(vectors, np.arange(len(vectors))):
        similarity = vectors[rows] @ vectors[rows].T
        alike = (images[rows, None] == images[rows]) | (texts[rows, None] == texts[rows])
        similarity[alike] = -np.inf
        _pair_greedily(rows, similarity, partner)
    alone = np.flatnonzero(partner == np.arange(len(vectors)))
    if len(alone) == 1 and len(vectors) > 1:  # join the swap of the row beside it: a circle of three
        other = (alone[0] + 1) % len(vectors)
        alone = np.array([alone[0], other])
        partner[alone] = partner[alone[::-1]]
    else:
        partner[alone] = np.roll(alone, -1)
    return partner


def _pair_greedily(rows: Ints, similarity: Matrix, partner: Ints) -> None:
    """Pair `rows` (n,) who are nearest to each other by `similarity` (n, n), -inf = never, then again the rest."""
    while len(rows) > 1:
        best = similarity.argmax(axis=1)
        here = np.arange(len(rows))
        mutual = (best[best] == here) & (similarity[here, best] > -np.inf)
        if not mutual.any():
            return
        partner[rows[mutual]] = rows[best[mutual]]
        rows, similarity = rows[~mutual], similarity[np.ix_(~mutual, ~mutual)]


def similar_blocks(vectors: Matrix, rows: Ints) -> list[Ints]:
    """Blocks of at most BLOCK similar rows: halve at the median along the direction in which the rows vary most."""
    if len(rows) <= BLOCK:
        return [rows]
    sample = vectors[rows[:: max(1, len(rows) // BLOCK)]]
    centred = (sample - sample.mean(axis=0)).astype(np.float64)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    order = np.argsort(vectors[rows] @ direction.astype(np.float32), kind="stable")
    half = len(rows) // 4 * 2
    return [*similar_blocks(vectors, rows[order[:half]]), *similar_blocks(vectors, rows[order[half:]])]


def _features(words: list[str]) -> Matrix:
    """Unit vectors (V, WIDTH): each word and each of its trigrams adds +1 or -1 at a place that its hash chooses."""
    hashes: list[int] = []
    lengths = np.zeros(len(words), dtype=np.int64)
    for index, word in enumerate(words):
        marked = f"<{word}>"
        parts = [marked, *(marked[i : i + 3] for i in range(len(marked) - 2))]
        lengths[index] = len(parts)
        hashes.extend(zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in parts)
    hashed = np.array(hashes, dtype=np.int64)
    vectors = np.zeros((len(words), WIDTH), dtype=np.float32)
    sign = np.where(hashed >> 16 & 1, 1, -1).astype(np.float32)
    np.add.at(vectors, (np.repeat(np.arange(len(words)), lengths), hashed % WIDTH), sign)
    return unit_rows(vectors)
