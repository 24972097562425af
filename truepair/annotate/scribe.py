"""What is written of a batch of images, and what a judge makes of it: the captions kept, those rejected, and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from truepair.annotate.preparing import Preparation, Prepared
from truepair.models.image_to_text import Captioner, Decoding
from truepair.models.likeness import PIXELS, Judge
from truepair.models.run_captioner import RunCaptioner
from truepair.pairs.columns import StringLists

NOTHING = "captioner wrote nothing"
REJECTED = "no better than the raw caption"
CLOSE = "better than the raw caption by less than the margin"
JUDGED = "for the judge"  # its pixels among a captioner's inputs

Accept: TypeAlias = Literal["all", "better"]


@dataclass(frozen=True)
class Note:
    """Of one row: captions kept and rejected, concepts shown, cosines of the best written and the best raw caption.

    skipped: why the row has no caption; "" where it has some or was not looked at.
    """

    texts: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    concepts: list[str] = field(default_factory=list)
    score: float = math.nan
    raw_score: float = math.nan
    skipped: str = ""


@dataclass(frozen=True)
class Scribe:
    """A captioner, and who judges what it writes: `judge`, else a run's own towers, else nobody."""

    captioner: Captioner | RunCaptioner
    decoding: Decoding
    seed: int
    accept: Accept
    margin: float  # logits that a caption must be above the best raw one, with `accept` "better"
    judge: Judge | None
    raw: StringLists  # captions of every row of the table

    @property
    def preparer(self) -> Preparation:
        """For worker processes: what the captioner and the judge want of images."""
        if self.judge is None:
            return self.captioner.preparer
        return _ForBoth(self.captioner.preparer, self.judge.preparer)

    @property
    def judges(self) -> bool:
        """Whether notes have scores."""
        return self.judge is not None or isinstance(self.captioner, RunCaptioner)

    def write(self, batch: Prepared) -> dict[int, Note]:
        """A note for every row of the batch."""
        notes = {row: Note(skipped=reason) for row, reason in batch.skipped}
        if not len(batch.rows):
            return notes
        inputs, rows = dict(batch.inputs), batch.rows.tolist()
        for_judge = inputs.pop(JUDGED, None)
        concepts: list[list[str]] = [[] for _ in rows]
        judge, images = self.judge, torch.empty(0)
        if isinstance(self.captioner, RunCaptioner):
            written = self.captioner.write(inputs, batch.rows, self.decoding, self.seed)
            texts, concepts = written.texts, written.concepts
            judge, images = judge or self.captioner.judge, written.images
        else:
            texts = self.captioner.generate(inputs, batch.rows, self.decoding, self.seed)
        if judge is None:
            return notes | {row: _note(own, []) for row, own in zip(rows, texts, strict=True)}
        if for_judge is not None:
            images = judge.see(for_judge)
        raw = [[text for text in self.raw[row] if text.strip()] for row in rows]
        cosines = judge.cosines(images, [own + of_row for own, of_row in zip(texts, raw, strict=True)])
        judged = zip(rows, texts, concepts, cosines, strict=True)
        margin = self.margin / judge.model.scale.item()  # in cosines
        return notes | {row: self._judged(own, shown, found, margin) for row, own, shown, found in judged}

    def _judged(self, texts: list[str], concepts: list[str], cosines: list[float], margin: float) -> Note:
        """cosines: of the texts, then of the raw captions."""
        scores, raw_scores = cosines[: len(texts)], cosines[len(texts) :]
        least = max(raw_scores) + margin if raw_scores and self.accept == "better" else -math.inf
        kept = [text for text, score in zip(texts, scores, strict=True) if score >= least]
        return _note(
            kept,
            concepts,
            rejected=[text for text in texts if text not in kept],
            score=max(scores, default=math.nan),
            raw_score=max(raw_scores, default=math.nan),
        )


def _note(
    texts: list[str],
    concepts: list[str],
    *,
    rejected: list[str] | None = None,
    score: float = math.nan,
    raw_score: float = math.nan,
) -> Note:
    why = "" if texts else NOTHING if not rejected else CLOSE if score >= raw_score else REJECTED
    return Note(texts, rejected or [], concepts, score, raw_score, why)


@dataclass(frozen=True)
class _ForBoth:
    """Images prepared for a captioner and, beside its inputs, for a judge."""

    captioner: Preparation
    judge: Preparation

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return {**self.captioner(images), JUDGED: self.judge(images)[PIXELS]}
