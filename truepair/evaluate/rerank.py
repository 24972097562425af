"""Re-ranks a dual encoder's nearest keys by a fusion encoder's verdict on each pair, in bounded memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate.features import Progress
from truepair.evaluate.ranks import CPU_TILE, CUDA_TILE, Positives, hits
from truepair.models.matcher import Matcher

Integers = npt.NDArray[np.int64]
Counting = Callable[[str, int], AbstractContextManager[Progress]]  # what is counted, of how many -> what to call

TIE = 1e-4  # log-odds closer than this are equal: a float32 encoder is no more exact (ours)
CPU_PAIRS, CUDA_PAIRS = 256, 4096  # scored at once, at most; on a CPU more is hardly faster
CPU_BYTES, CUDA_BYTES = 1 << 27, 1 << 30  # of their image tokens in float32; a layer needs about twice as much beside
TEXTS = 1024  # read at once
HALF = torch.finfo(torch.float16).max


class ImageTokens:
    """Tokens of images in float16 on the CPU, (n, P, v): as they come while the images are encoded.

    Attributes: `held` so many of at most `n` images.
    """

    def __init__(self, matcher: Matcher, n: int) -> None:
        self.matcher, self.n, self.held = matcher, n, 0
        self._tokens = torch.empty(0, dtype=torch.float16)
        self._place: Integers | None = None

    def see(self, _: list[int], images: Tensor) -> Tensor:
        """Encodes images, keeps their tokens behind those it has: stands for the model's `encode_image`.

        Raises UserError if they are not finite.
        """
        features, tokens = self.matcher.see_both(images)
        if not self.held:
            self._tokens = _room(self.n, *tokens.shape[1:])
        self._tokens[self.held : self.held + len(tokens)] = halved(tokens, self.matcher)
        self.held += len(tokens)
        return features

    def only(self, numbers: Integers) -> None:
        """From now on image i is the one that came as number `numbers[i]`."""
        self._place = numbers

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return self._tokens.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        """(P, v)."""
        return self._tokens.shape[1], self._tokens.shape[2]

    def of(self, images: Integers) -> Tensor:
        """(b,) numbers -> (b, P, v) float32 on the matcher's device; an image that is there twice travels once."""
        own, place = np.unique(images if self._place is None else self._place[images], return_inverse=True)
        tokens = self._tokens[torch.from_numpy(own)].to(self.matcher.device).float()
        return tokens[torch.from_numpy(place).to(tokens.device)]


class TextTokens:
    """Hidden states of n texts in float16 on the CPU, one text's behind the other's, without padding.

    Raises UserError if they are not finite.
    """

    def __init__(self, matcher: Matcher, texts: Sequence[str]) -> None:
        ids = [matcher.towers.tokenize(list(texts[i : i + TEXTS])) for i in range(0, len(texts), TEXTS)]
        self.matcher = matcher
        lengths: list[Tensor] = []
        states: list[Tensor] = []
        for tokens in ids:
            text, attended = matcher.read(tokens)
            lengths.append(attended.sum(dim=1).cpu())
            states.append(halved(text[attended], matcher).cpu())
        self._states = torch.cat(states)  # (S, w)
        self._lengths = torch.cat(lengths)
        self._starts = self._lengths.cumsum(0) - self._lengths

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return self._states.nbytes

    def of(self, texts: Integers) -> tuple[Tensor, Tensor]:
        """(b,) numbers -> (b, L, w) float32 and (b, L) bool of `Matcher.read`, L the longest's, on its device."""
        chosen = torch.from_numpy(texts)
        lengths = self._lengths[chosen, None]
        place = torch.arange(int(lengths.max()))
        attended = place < lengths  # (b, L)
        states = self._states[torch.where(attended, self._starts[chosen, None] + place, 0)]
        device = self.matcher.device
        return states.to(device).float(), attended.to(device)


def halved(tokens: Tensor, matcher: Matcher) -> Tensor:
    """Tokens of any shape in float16; numbers beyond its range become its largest (maps before a layer norm may be so).

    Raises UserError if they are not finite.
    """
    if not bool(tokens.isfinite().all()):
        raise UserError(f"the towers of {matcher.name} give tokens that are not finite; there is nothing to re-rank by")
    return tokens.clamp(-HALF, HALF).half()


@dataclass(frozen=True)
class Reranked:
    """The keys a query is left with. candidates: (n, K) int64 key numbers. scores: (n, K) float32, log-odds of a match.

    Scores are finite. A row is in no particular order.
    """

    candidates: Integers
    scores: npt.NDArray[np.float32]


def rerank(
    images: ImageTokens, texts: TextTokens, image: Tensor, text: Tensor, k: int, counting: Counting | None = None
) -> tuple[Reranked, Reranked]:
    """Texts for every image and images for every text: the `k` nearest, and what the fusion encoder says of each.

    image (I, D), text (T, D): float32 unit rows of the dual encoder, row i that of `images`' i and `texts`' i.
    As ALBEF (arXiv 2107.07651, section 3.3 and its code, k_test) re-ranks; a pair that both directions ask for is
    scored once. Memory: the tokens held, k numbers a query, and the pairs scored at once.
    Raises UserError for k < 1, and for a fusion encoder whose verdicts are not finite.
    """
    if k < 1:
        raise UserError(f"re-ranking the {k} nearest makes no sense; re-rank at least 1")
    of_image, of_text = nearest(image, text, k), nearest(text, image, k)
    codes = np.concatenate(
        [
            (np.arange(len(image))[:, None] * len(text) + of_image).ravel(),
            (of_text * len(text) + np.arange(len(text))[:, None]).ravel(),
        ]
    )
    pairs, place = np.unique(codes, return_inverse=True)  # an image's pairs lie together
    scores = _scores(images, texts, pairs, len(text), counting)[place]
    return (
        Reranked(of_image, scores[: of_image.size].reshape(of_image.shape)),
        Reranked(of_text, scores[of_image.size :].reshape(of_text.shape)),
    )


def nearest(queries: Tensor, keys: Tensor, k: int, *, tile: tuple[int, int] | None = None) -> Integers:
    """(n, min(k, m)) numbers of the keys nearest to each query, in no particular order.

    queries (n, D), keys (m, D): float32 unit rows on one device. Which of the keys that tie for the last place are
    among them is arbitrary, but does not depend on where they stand: on a fixed random order.
    """
    height, width = tile or (CUDA_TILE if queries.is_cuda else CPU_TILE)
    order = torch.from_numpy(np.random.Generator(np.random.Philox(0)).permutation(len(keys))).to(keys.device)
    keys = keys[order]
    found = torch.empty(len(queries), min(k, len(keys)), dtype=torch.int64)
    for start in range(0, len(queries), height):
        block = queries[start : start + height]
        best, number = block.new_empty(len(block), 0), order.new_empty(len(block), 0)
        for first in range(0, len(keys), width):
            scores = (block @ keys[first : first + width].T).nan_to_num(nan=-torch.inf)
            best = torch.cat([best, scores], dim=1)
            number = torch.cat([number, order[first : first + width].expand(len(block), -1)], dim=1)
            best, kept = best.topk(min(k, best.shape[1]), dim=1, sorted=False)
            number = number.gather(1, kept)
        found[start : start + height] = number.cpu()
    return found.numpy()


def reranked_recall(ranked: Reranked, n_keys: int, right: Positives, ks: Sequence[int]) -> dict[int, float]:
    """k -> share of queries with a right key among the first k candidates, ordered by their scores alone.

    A query whose right keys are not among its candidates never hits.
    Ties (log-odds within 1e-4) count as a random order does on average.
    """
    n = len(ranked.candidates)
    owner = torch.repeat_interleave(torch.arange(n), right.indptr.diff())
    wanted = (owner * n_keys + right.indices).numpy()
    scores = torch.from_numpy(ranked.scores)
    is_right = torch.from_numpy(np.isin(np.arange(n)[:, None] * n_keys + ranked.candidates, wanted))
    best = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
    above = (~is_right & (scores > best + TIE)).sum(dim=1)
    tied = (~is_right & (scores >= best - TIE)).sum(dim=1) - above
    tied_right = (is_right & (scores >= best - TIE)).sum(dim=1)
    found = hits(above, tied, tied_right, ks)
    return {k: float(hit.mean()) for k, hit in zip(ks, found, strict=True)}


def pairs_at_once(device: torch.device, cells: int, width: int) -> int:
    """How many pairs to score at a time whose images have `cells` tokens of `width` numbers."""
    most, budget = (CUDA_PAIRS, CUDA_BYTES) if device.type == "cuda" else (CPU_PAIRS, CPU_BYTES)
    return max(1, min(most, budget // (4 * cells * width)))


def _scores(
    images: ImageTokens, texts: TextTokens, pairs: Integers, n_texts: int, counting: Counting | None
) -> npt.NDArray[np.float32]:
    """(E,) log-odds of pairs image · n_texts + text, ascending."""
    matcher, step = images.matcher, pairs_at_once(images.matcher.device, *images.shape)
    scores = np.empty(len(pairs), np.float32)

    def score(advance: Progress | None) -> None:
        for start in range(0, len(pairs), step):
            image, text = np.divmod(pairs[start : start + step], n_texts)
            found = matcher.log_odds(*texts.of(text), images.of(image))
            scores[start : start + step] = found.cpu().numpy()
            if advance is not None:
                advance(len(found))

    if counting is None:
        score(None)
    else:
        held = (images.bytes + texts.bytes) / 2**30
        with counting(f"re-ranking, {held:.2g} GiB of tokens, pairs", len(pairs)) as advance:
            score(advance)
    return scores


def _room(n: int, *shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(n, *shape, dtype=torch.float16)
