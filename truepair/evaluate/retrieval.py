"""Retrieval both ways: does an image find one of its captions, does a caption find one of its images?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate.examples import Retrieved, retrieved
from truepair.evaluate.features import Encoder, Progress, reasons, towers_of
from truepair.evaluate.pairs import encode_pairing, pairing
from truepair.evaluate.ranks import Positives, positives, probability_of_hit
from truepair.evaluate.rerank import Counting, ImageTokens, TextTokens, rerank, reranked_recall
from truepair.evaluate.result import benchmark_json
from truepair.models.matcher import Matcher
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class RetrievalResult:
    """Recall@k as k -> share of queries in [0, 1]; queries are the distinct images and the distinct captions.

    skipped: reason -> number of images, or rows without a caption, left out.
    candidates: 0, or the K keys of each query that a fusion encoder has put in order. reranked: that order's result
        beside the dual encoder's own, if it was asked for. examples: what single images found, likewise.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    n_images: int
    n_texts: int
    dataset: str
    model: str
    skipped: dict[str, int]
    candidates: int = 0
    reranked: "RetrievalResult | None" = None
    examples: tuple[Retrieved, ...] = ()

    def both(self, k: int) -> float:
        """Mean recall@k of the two directions."""
        return (self.image_to_text[k] + self.text_to_image[k]) / 2

    def to_json(self, pretrained: str = "") -> dict[str, Any]:
        """The result in CLIP_benchmark's fields; there "image_retrieval" means text to image.

        A re-ranked one has the same metrics under a task name of our own and says how many `candidates` there were.
        """
        metrics = {f"image_retrieval_recall@{k}": recall for k, recall in self.text_to_image.items()}
        metrics |= {f"text_retrieval_recall@{k}": recall for k, recall in self.image_to_text.items()}
        task = "zeroshot_retrieval_reranked" if self.candidates else "zeroshot_retrieval"
        own = {"candidates": self.candidates} if self.candidates else {}
        return benchmark_json(self.dataset, self.model, pretrained, task, metrics) | own


def recall_at_k(
    queries: Tensor, keys: Tensor, right: Positives, ks: Sequence[int], *, tile: tuple[int, int] | None = None
) -> dict[int, float]:
    """k -> share of queries with at least one right key among their k nearest keys (CLIP_benchmark's convention).

    queries (n, D), keys (m, D): float32 unit rows on one device. Memory beside them: one `tile` of scores.
    Ties (within 1e-6 in cosine) count as a random order does on average: a collapsed model scores as guessing would.
    """
    hits = probability_of_hit(queries, keys, right, ks, tile=tile)
    return {k: float(hit.mean()) for k, hit in zip(ks, hits, strict=True)}


def retrieval(
    model: Encoder | Matcher,
    table: PairTable,
    *,
    ks: Sequence[int] = (1, 5, 10),
    captions_per_image: int | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
    candidates: int = 0,
    counting: Counting | None = None,
    examples: int = 0,
) -> RetrievalResult:
    """Search all images with every caption and all captions with every image.

    Rows with identical image bytes are one image with all their captions; identical captions are one text with all
    their images.
    `captions_per_image`: only the first so many captions of a row. `rows`: only these rows of the table.
    Images that cannot be decoded are left out, and with them the captions that no other image has.
    `candidates`: K > 0 has a `Matcher` re-rank the K nearest of each query (`evaluate.rerank`), which holds the tokens
    of all images and texts on the CPU, 2·P·v bytes an image and 2·w a token of text; `counting` opens a progress bar.
    `examples`: of so many images tell what they find (`evaluate.examples`).
    Raises UserError if nothing is left, ValueError for `candidates` of a model without fusion encoder.
    """
    if candidates and not isinstance(model, Matcher):
        raise ValueError(f"model {model.name} has no fusion encoder to re-rank with")
    paired = pairing(table, rows=rows, captions_per_row=captions_per_image)
    tokens = ImageTokens(model, len(paired.first)) if candidates and isinstance(model, Matcher) else None
    towers = towers_of(model)
    pairs = encode_pairing(
        towers,
        table,
        paired,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        see=None if tokens is None else tokens.see,
    )
    image, text = pairs.image_of_row[pairs.row_of_caption], pairs.text_of_caption
    image, text = image[image >= 0], text[image >= 0]
    if not len(image):
        raise UserError(
            f"{table.path} has no image with a caption to evaluate; its rows were skipped: {reasons(pairs.skipped)}"
        )
    used_images, image = np.unique(image, return_inverse=True)
    used_texts, text = np.unique(text, return_inverse=True)
    images = pairs.images[used_images].to(towers.device)
    texts = pairs.texts[used_texts].to(towers.device)
    right_texts, right_images = positives(image, text, len(images)), positives(text, image, len(texts))
    said = [paired.texts[i] for i in used_texts]
    result = RetrievalResult(
        image_to_text=recall_at_k(images, texts, right_texts, ks),
        text_to_image=recall_at_k(texts, images, right_images, ks),
        n_images=len(images),
        n_texts=len(texts),
        dataset=table.path.name,
        model=towers.name,
        skipped=reasons(pairs.skipped),
        examples=tuple(retrieved(images, texts, right_texts, paired.first[used_images], said, examples)),
    )
    if tokens is None:
        return result
    tokens.only(used_images)
    read = TextTokens(tokens.matcher, said)
    of_image, of_text = rerank(tokens, read, images, texts, candidates, counting)
    reranked = replace(
        result,
        image_to_text=reranked_recall(of_image, len(texts), right_texts, ks),
        text_to_image=reranked_recall(of_text, len(images), right_images, ks),
        candidates=candidates,
    )
    return replace(result, reranked=reranked)
