"""BLEU, CIDEr-D and ROUGE-L of one candidate an image against several references, as COCO's evaluation defines them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Words = Sequence[str]

ORDER = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # CIDEr-D: of the penalty on a difference of length [words]
BETA = 1.2  # ROUGE-L: weight of recall
CELLS = 1 << 22  # of the dynamic programme, held at once


@dataclass(frozen=True)
class Sentences:
    """n candidates, then the m references of their images, as word ids in one array.

    word: (W,) int64. start: (n + m + 1,) where each sentence begins. image: (m,) of each reference, ascending, 0..n-1.
    """

    word: Integers
    start: Integers
    image: Integers

    @classmethod
    def of(cls, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> "Sentences":
        """Of n candidates and the references of each. Raises ValueError if n is 0 or an image has no reference."""
        if not candidates or len(candidates) != len(references) or not all(references):
            raise ValueError("each candidate needs its references, at least one, and there must be a candidate")
        sentences = [*candidates, *(words for several in references for words in several)]
        ids: dict[str, int] = {}
        word = np.array([ids.setdefault(word, len(ids)) for words in sentences for word in words], np.int64)
        start = np.cumsum([0, *map(len, sentences)])
        return cls(word, start, np.repeat(np.arange(len(candidates)), [len(several) for several in references]))

    @property
    def n(self) -> int:
        """Candidates, and images."""
        return len(self.start) - 1 - len(self.image)

    @property
    def length(self) -> Integers:
        """(n + m,) words of each sentence."""
        return np.diff(self.start)


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order stands in each sentence that has it, sorted by sentence, then n-gram.

    sentence, gram, count: (E,) int64; ids of n-grams are below `grams`.
    """

    sentence: Integers
    gram: Integers
    count: Integers
    grams: int


def counts(sentences: Sentences) -> Iterator[Counts]:
    """The n-grams of orders 1, 2, 3, 4. Memory: a few arrays of W numbers at a time."""
    owner = np.repeat(np.arange(len(sentences.start) - 1), sentences.length)
    at = np.arange(len(owner))
    last = sentences.start[1:][owner]
    gram, words = sentences.word, int(sentences.word.max(initial=0)) + 1
    for order in range(1, ORDER + 1):
        if order > 1:  # the n-gram of one word less here, and the word after it
            going_on = at + order <= last
            at, last, gram = at[going_on], last[going_on], gram[going_on]
            gram = np.unique(gram * words + sentences.word[at + order - 1], return_inverse=True)[1]
        grams = int(gram.max(initial=-1)) + 1
        pairs, count = np.unique(owner[at] * max(grams, 1) + gram, return_counts=True)
        yield Counts(pairs // max(grams, 1), pairs % max(grams, 1), count, grams)


def bleu(sentences: Sentences) -> Floats:
    """(4,) corpus BLEU-1 to BLEU-4 in [0, 1] (Papineni et al. 2002), with the closest reference's length."""
    n, length = sentences.n, sentences.length
    correct, guessed = np.zeros(ORDER), np.zeros(ORDER)
    for order, found in enumerate(counts(sentences)):
        split = int(np.searchsorted(found.sentence, n))
        key = sentences.image[found.sentence[split:] - n] * found.grams + found.gram[split:]
        allowed, place = np.unique(key, return_inverse=True)
        most = np.zeros(len(allowed), np.int64)
        np.maximum.at(most, place, found.count[split:])
        clip = _looked_up(allowed, most, found.sentence[:split] * found.grams + found.gram[:split])
        correct[order] = np.minimum(found.count[:split], clip).sum()
        guessed[order] = np.maximum(length[:n] - order, 0).sum()
    precision = (correct + 1e-15) / (guessed + 1e-9)  # COCO's guards against nothing guessed
    geometric = np.cumprod(precision) ** (1 / np.arange(1, ORDER + 1))
    ratio = (length[:n].sum() + 1e-15) / (_closest(sentences).sum() + 1e-9)
    return np.asarray(geometric * np.exp(min(0.0, 1 - 1 / ratio)))


def cider_d(sentences: Sentences) -> Floats:
    """(n,) CIDEr-D of every image in [0, 10] (Vedantam et al. 2015); papers print 100 times the mean.

    Document frequencies are those of the references given: with a single image all are 0, and with few they say
    little.
    """
    n, images = sentences.n, len(sentences.start) - 1
    candidate = sentences.image
    score = np.zeros(len(sentences.image))
    for found in counts(sentences):
        split = int(np.searchsorted(found.sentence, n))
        image = np.concatenate([found.sentence[:split], candidate[found.sentence[split:] - n]])
        documents = np.unique(image[split:] * max(found.grams, 1) + found.gram[split:]) % max(found.grams, 1)
        frequency = np.bincount(documents, minlength=found.grams)
        weight = found.count * (np.log(float(n)) - np.log(np.maximum(1.0, frequency)))[found.gram]
        norm = np.sqrt(np.bincount(found.sentence, weight**2, minlength=images))
        key = image * found.grams + found.gram
        theirs = weight[split:]
        ours = _looked_up(key[:split], weight[:split], key[split:])
        product = np.zeros(len(score))
        np.add.at(product, found.sentence[split:] - n, np.minimum(ours, theirs) * theirs)
        norms = norm[candidate] * norm[n:]
        score += np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    words = np.maximum(sentences.length - 1, 0)  # COCO's code counts pairs of words
    score *= np.exp(-((words[candidate] - words[n:]) ** 2) / (2 * SIGMA**2))
    return np.asarray(10 / ORDER * np.bincount(candidate, score) / np.bincount(candidate))


def rouge_l(sentences: Sentences) -> Floats:
    """(n,) ROUGE-L of every image in [0, 1] (Lin 2004), β = 1.2, best precision and best recall of its references.

    As in COCO's code a sentence without words is one empty word.
    """
    n, image = sentences.n, sentences.image
    length = sentences.length
    common = _common_subsequence(sentences)
    common[(length[image] == 0) & (length[n:] == 0)] = 1
    precision, recall = np.zeros(n), np.zeros(n)
    np.maximum.at(precision, image, common / np.maximum(length[image], 1))
    np.maximum.at(recall, image, common / np.maximum(length[n:], 1))
    below = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros(n), where=below > 0)


def _closest(sentences: Sentences) -> Integers:
    """(n,) length of the reference nearest in length to each candidate, the shorter of two."""
    n, image = sentences.n, sentences.image
    theirs = sentences.length[n:]
    order = np.lexsort((theirs, np.abs(theirs - sentences.length[image]), image))
    first = np.flatnonzero(np.diff(image, prepend=-1))
    return theirs[order][first]


def _looked_up(keys: Integers, values: npt.NDArray[np.number], wanted: Integers) -> npt.NDArray[np.number]:
    """Values of the wanted keys, 0 where there is none; `keys` ascend."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], values.dtype.type(0))


def _common_subsequence(sentences: Sentences) -> Integers:
    """(m,) words in the longest common subsequence of each reference and its candidate, many pairs at a time."""
    n, image = sentences.n, sentences.image
    ours, theirs = sentences.length[image], sentences.length[n:]
    common = np.zeros(len(image), np.int64)
    longer = np.maximum(np.maximum(ours, theirs), 1)
    order = np.argsort(longer, kind="stable")
    done = 0
    while done < len(order):
        cells = np.arange(1, len(order) - done + 1) * longer[order[done:]]  # ascending
        some = order[done : done + max(1, int(np.searchsorted(cells, CELLS)))]
        done += len(some)
        reference = _padded(sentences, n + some, int(theirs[some].max()), -1)
        candidate = _padded(sentences, image[some], int(ours[some].max()), -2)
        best = np.zeros((len(some), reference.shape[1] + 1), np.int32)
        for step in range(candidate.shape[1]):
            # The row of the table below: max(above, above-left + equal), and then what is to the left.
            best[:, 1:] = np.maximum(best[:, 1:], best[:, :-1] + (reference == candidate[:, step, None]))
            np.maximum.accumulate(best, axis=1, out=best)
        common[some] = best[:, -1]
    return common


def _padded(sentences: Sentences, which: Integers, width: int, filler: int) -> Integers:
    """(len(which), width) word ids, `filler` after a sentence's end."""
    at = sentences.start[which][:, None] + np.arange(width)
    inside = at < sentences.start[which + 1][:, None]
    return np.where(inside, sentences.word[np.minimum(at, max(len(sentences.word) - 1, 0))], filler)
