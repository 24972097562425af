"""Makes pairs noisy on purpose, with the truth beside them, as the noisy-correspondence literature does.

A fraction of the rows is chosen by the seed; their captions are exchanged or spoilt. The same seed chooses the same
rows for every kind, and a lower rate chooses a part of the rows of a higher one. Kinds:

shuffle      the chosen rows pass their captions on in one random circle, so that none keeps its own (the default)
near         two chosen rows whose captions are close in meaning exchange them (hard noise)
truncate     each caption is cut to its first third of words, at least one; one of a single word to half its letters
boilerplate  the captions give way to one of a few stock sentences
foreign      the captions give way to those in another language if there are any, else their Latin letters are
             exchanged by a fixed alphabet: a language nobody speaks (other scripts stay, and then count as fitting)

The choice of rows by permutation is the literature's; the spoilt kinds, the wording and the effective rate are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from truepair.errors import UserError
from truepair.noise.near import nearest_partners, unit_rows, word_vectors

Captions = Sequence[Sequence[str]]
Ints = NDArray[np.int64]
Kind = Literal["shuffle", "near", "truncate", "boilerplate", "foreign"]
KINDS: tuple[Kind, ...] = get_args(Kind)

STOCK_SENTENCES = (
    "Click here to see the full size picture.",
    "Image may be subject to copyright.",
    "Free shipping on all orders this week.",
    "Photo for illustration purposes only.",
    "No description available.",
    "Sign in to read more.",
)
INVENTED_ALPHABET = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "okmvigtbuhznpreyxwfdalsjqcOKMVIGTBUHZNPREYXWFDALSJQC",
)


@dataclass(frozen=True)
class Corruption:
    """The captions after the injection, and the truth about each of the N rows.

    captions: N lists, new ones even where nothing changed.
    source: (N,) int64, the row whose captions are here now; the row itself if it kept them, -1 if they were edited.
    chosen: (N,) bool, rows chosen for noise. nominal: their fraction.
    is_noise: (N,) bool, chosen rows none of whose captions fits: none equals, without regard to case and outer
        blanks, an original caption of a row with the same image. effective: their fraction.
    """

    captions: list[list[str]]
    source: Ints
    chosen: NDArray[np.bool_]
    is_noise: NDArray[np.bool_]
    nominal: float
    effective: float


def corrupt(
    captions: Captions,
    images: Ints,
    kind: Kind,
    rate: float,
    seed: int,
    *,
    embeddings: NDArray[np.floating[Any]] | None = None,
    foreign: Captions | None = None,
) -> Corruption:
    """Inject noise of one kind into round(rate · N) of N rows; the result depends on the arguments alone.

    captions: N sequences of captions. images: (N,) int64, equal for rows of the same image.
    embeddings: (N, D) meaning of each row's captions for `near`, from any sentence encoder, NaN where there is none;
        by default from words and parts of words.
    foreign: N sequences of captions in another language for `foreign`, empty where there is none.
    Raises UserError for an unknown kind, a rate outside [0, 1], a negative seed or arguments of different lengths.
    """
    rows = len(captions)
    _check(rows, images, kind, rate, seed, embeddings, foreign)
    generator = np.random.Generator(np.random.Philox(seed))
    order = generator.permutation(rows)[: round(rate * rows)].astype(np.int64)

    changed = [list(texts) for texts in captions]
    source = np.arange(rows, dtype=np.int64)
    if kind == "shuffle" or kind == "near":
        source[order] = np.roll(order, -1) if kind == "shuffle" else _near(captions, images, order, embeddings)
        for row in order.tolist():
            changed[row] = list(captions[source[row]])
    else:
        source[order] = -1
        sentences = generator.integers(len(STOCK_SENTENCES), size=len(order)).tolist()
        for row, sentence in zip(order.tolist(), sentences, strict=True):
            if kind == "truncate":
                changed[row] = [truncated(text) for text in captions[row]]
            elif kind == "boilerplate":
                changed[row] = [STOCK_SENTENCES[sentence]]
            else:
                changed[row] = list(foreign[row] if foreign else ()) or [invented(text) for text in captions[row]]

    chosen = np.zeros(rows, dtype=np.bool_)
    chosen[order] = True
    is_noise = chosen.copy()
    is_noise[order] = ~_fits([changed[row] for row in order.tolist()], images[order], captions, images)
    share = max(1, rows)
    return Corruption(changed, source, chosen, is_noise, len(order) / share, int(is_noise.sum()) / share)


def truncated(text: str) -> str:
    """The first third of the words, at least one; of a single word the first half of its letters, at least one."""
    words = text.split()
    if len(words) > 1:
        return " ".join(words[: max(1, len(words) // 3)])
    word = text.strip()
    return word[: max(1, len(word) // 2)]


def invented(text: str) -> str:
    """The text with each Latin letter exchanged by a fixed alphabet (vowels and case stay)."""
    return text.translate(INVENTED_ALPHABET)


def _near(captions: Captions, images: Ints, order: Ints, embeddings: NDArray[np.floating[Any]] | None) -> Ints:
    """For each chosen row, in `order`, the chosen row near in meaning whose captions it gets."""
    texts = [captions[row] for row in order.tolist()]
    vectors = word_vectors(texts) if embeddings is None else unit_rows(embeddings[order])
    known: dict[tuple[str, ...], int] = {}
    same = (known.setdefault(tuple(sorted({_plain(text) for text in row})), len(known)) for row in texts)
    ids = np.fromiter(same, dtype=np.int64, count=len(texts))
    return order[nearest_partners(vectors, images[order], ids)]


def _fits(captions: Captions, images: Ints, originals: Captions, original_images: Ints) -> NDArray[np.bool_]:
    """For each row of `captions`, of image `images`: is one of them an original caption of that image?"""
    known: dict[str, int] = {}
    every = _numbered(originals, known)
    here = _numbered(captions, known)
    image = np.unique(original_images, return_inverse=True)[1]
    place = np.searchsorted(np.unique(original_images), images)
    row = np.repeat(np.arange(len(captions)), _lengths(captions))
    true = np.repeat(image, _lengths(originals)) * len(known) + every  # one number for each (image, caption)
    fits = np.zeros(len(captions), dtype=np.bool_)
    fits[row[np.isin(place[row] * len(known) + here, true)]] = True
    return fits


def _numbered(captions: Captions, known: dict[str, int]) -> Ints:
    """All captions in a row, each as its number in `known`, which grows with the unknown ones."""
    numbers = [known.setdefault(_plain(text), len(known)) for text in chain.from_iterable(captions)]
    return np.array(numbers, dtype=np.int64)


def _lengths(captions: Captions) -> Ints:
    return np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))


def _plain(text: str) -> str:
    return text.strip().casefold()


def _check(
    rows: int,
    images: Ints,
    kind: str,
    rate: float,
    seed: int,
    embeddings: NDArray[np.floating[Any]] | None,
    foreign: Captions | None,
) -> None:
    if kind not in KINDS:
        raise UserError(f"no noise of the kind '{kind}': choose one of {', '.join(KINDS)}")
    if not 0 <= rate <= 1:
        raise UserError(f"noise rate {rate}: give a fraction between 0 and 1")
    if seed < 0:
        raise UserError(f"seed {seed}: give a number of 0 or more")
    beside = {"image ids": images, "embeddings": embeddings, "foreign captions": foreign}
    for name, values in beside.items():
        if values is not None and len(values) != rows:
            raise UserError(f"{len(values)} {name} for {rows} rows of captions: one a row is needed")
