"""Captioning: one caption an image against those people wrote (BLEU, CIDEr-D, ROUGE-L) and against the image."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.annotate.preparing import Preparation, PreparedImages
from truepair.errors import UserError
from truepair.evaluate.clipscore import clip_scores
from truepair.evaluate.described import Candidates, Described
from truepair.evaluate.features import Encoder, Progress, Skipped, reasons
from truepair.evaluate.meteor import meteor as meteor_of
from truepair.evaluate.ngrams import Sentences, bleu, cider_d, rouge_l
from truepair.evaluate.ptb import ptb_words
from truepair.evaluate.result import benchmark_json
from truepair.models.image_to_text import Decoding
from truepair.models.run_captioner import RunCaptioner
from truepair.pairs.table import PairTable
from truepair.pairs.workers import items

Floats = npt.NDArray[np.float64]

# Three beams and 20 tokens: BLIP's own evaluation on COCO (its code). It also asks for five tokens at least, which no
# caption of COCO falls below; tables with captions of a word or two are why there is no such floor here (ours).
DECODING = Decoding("beam", beams=3, min_tokens=0, max_tokens=20)


class Writer(Protocol):
    """What evaluation needs of a captioner (`models.image_to_text.Captioner`, `models.run_captioner.RunCaptioner`)."""

    name: str

    @property
    def preparer(self) -> Preparation: ...

    @property
    def device(self) -> torch.device: ...

    def generate(
        self, inputs: dict[str, Tensor], rows: npt.NDArray[np.int64], decoding: Decoding, seed: int
    ) -> list[list[str]]: ...


@dataclass(frozen=True)
class CaptionFigures:
    """Of n captions. bleu: (4,) of the corpus, in [0, 1]. cider: (n,) CIDEr-D in [0, 10]. rouge_l: (n,) in [0, 1]."""

    bleu: Floats
    cider: Floats
    rouge_l: Floats


@dataclass(frozen=True)
class CaptioningResult:
    """Figures of one caption an image, by COCO's names, as its evaluation gives them: papers print 100 times these.

    metrics: Bleu_1..Bleu_4, ROUGE_L, CIDEr (CIDEr-D); METEOR if asked for; CLIPScore, RefCLIPScore if there is a judge.
    n_images: images with a caption, which the figures are of; n_described: all that have a reference.
    captions: who wrote them: a captioner, a column, a file. judge: the model of CLIPScore, "" if there was none.
    skipped: reason -> number of images left out.
    """

    metrics: dict[str, float]
    n_images: int
    n_described: int
    n_references: int
    references: str  # the column they stand in, "" for a file
    dataset: str
    captions: str
    judge: str
    skipped: dict[str, int]

    @property
    def coverage(self) -> float:
        """The share of the images that has a caption; figures of different shares are of different images."""
        return self.n_images / self.n_described

    def to_json(self, pretrained: str = "") -> dict[str, Any]:
        """The result in CLIP_benchmark's fields, under its task name "captioning", with counts and judge beside."""
        more: dict[str, Any] = {"judge": self.judge, "coverage": self.coverage, "n_images": self.n_images}
        more |= {"n_described": self.n_described, "n_references": self.n_references, "references": self.references}
        result = benchmark_json(self.dataset, self.captions, pretrained, "captioning", self.metrics)
        return result | more | {"skipped": self.skipped}


def caption_figures(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionFigures:
    """BLEU, CIDEr-D and ROUGE-L of n captions, each against the references of its image, at least one.

    Words are those of `ptb_words`; CIDEr-D's document frequencies those of these references.
    Raises ValueError if n is 0 or a caption has no reference.
    """
    sentences = Sentences.of(*_words(candidates, references))
    return CaptionFigures(bleu(sentences), cider_d(sentences), rouge_l(sentences))


def captioning(
    images: Described,
    candidates: Candidates,
    *,
    judge: Encoder | None = None,
    meteor: bool = False,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> CaptioningResult:
    """Compare one caption an image with the image's references, and by `judge` with the image.

    Images without candidate are left out and counted; an empty candidate is a caption, a bad one.
    `progress` is called with the number of images the judge has seen.
    Raises UserError if no image has a candidate, a judge has no images to see, or METEOR is not to be had.
    """
    scored = [number for number, text in enumerate(candidates.texts) if text is not None]
    written = [text for text in candidates.texts if text is not None]
    if not scored:
        raise UserError(f"{images.name}: none of the {len(images):,} images has a candidate in {candidates.by}")
    references = [images.references[number] for number in scored]
    figures = caption_figures(written, references)
    metrics = {f"Bleu_{order}": float(value) for order, value in enumerate(figures.bleu, start=1)}
    metrics |= {"ROUGE_L": float(figures.rouge_l.mean()), "CIDEr": float(figures.cider.mean())}
    if meteor:
        metrics["METEOR"] = meteor_of(*_words(written, references))
    left_out = images.skipped | candidates.skipped
    if judge is not None:
        if images.table is None:
            raise UserError(f"{images.name} brings no images, which CLIPScore needs; index it: truepair index")
        fit, harmonic, unseen = clip_scores(
            judge,
            partial(_read, images.table, images.rows[scored]),
            written,
            references,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        metrics |= {"CLIPScore": float(np.nanmean(fit)), "RefCLIPScore": float(np.nanmean(harmonic))}
        left_out |= {f"{reason} (no CLIPScore)": count for reason, count in reasons(unseen).items()}
    return CaptioningResult(
        metrics=metrics,
        n_images=len(scored),
        n_described=len(images),
        n_references=sum(map(len, references)),
        references=images.column,
        dataset=images.name,
        captions=candidates.by,
        judge="" if judge is None else judge.name,
        skipped=left_out,
    )


def written_by(
    captioner: Writer,
    images: Described,
    *,
    decoding: Decoding = DECODING,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Candidates:
    """What a captioner writes for every image, its first choice; images that it cannot have are counted.

    Where it writes nothing the caption is empty. Raises UserError if the images are not at hand or none can be used.
    """
    if images.table is None:
        raise UserError(f"{images.name} brings no images to caption; index it: truepair index, or give --candidates")
    if isinstance(captioner, RunCaptioner):
        captioner = captioner.at(images.table)
    numbers = np.arange(len(images))
    found: list[str | None] = [None] * len(images)
    skipped: list[Skipped] = []
    plan = [images.rows[some] for some in np.split(numbers, numbers[batch_size::batch_size])]
    number_of = dict(zip(images.rows.tolist(), numbers.tolist(), strict=True))
    source = PreparedImages(images.table, captioner.preparer, plan)
    prepared = items(source, range(len(plan)), workers=workers, pin=captioner.device.type == "cuda")
    with closing(prepared) as batches:
        for batch in batches:
            skipped += batch.skipped
            texts = captioner.generate(batch.inputs, batch.rows, decoding, seed) if len(batch.rows) else []
            for row, lists in zip(batch.rows.tolist(), texts, strict=True):
                found[number_of[row]] = lists[0] if lists else ""
            if progress is not None:
                progress(len(batch.rows) + len(batch.skipped))
    if all(text is None for text in found):
        raise UserError(
            f"no image of {images.name} could be captioned ({', '.join(reasons(skipped))}); check its files"
        )
    return Candidates(captioner.name, found, reasons(skipped))


def _words(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    return list(map(ptb_words, candidates)), [list(map(ptb_words, several)) for several in references]


def _read(table: PairTable, rows: npt.NDArray[np.int64], image: int) -> bytes:
    return table.image_bytes(int(rows[image]))
