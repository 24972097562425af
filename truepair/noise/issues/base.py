"""What an issue is, what it is looked for in, and what is found: a score a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truepair.noise.issues.looks import Looks
from truepair.pairs.columns import StringLists

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Action = Literal["keep", "review", "recaption", "merge", "drop"]
ACTIONS: tuple[Action, ...] = ("keep", "review", "recaption", "merge", "drop")  # the gravest last

DOUBTED = 0.5  # p_noise from which on a pair is not trusted to say what its image or caption means (ours)


class Features(Protocol):
    """Features of the r rows that have both, made where they are needed (`evaluate.noise.RowFeatures`)."""

    @property
    def rows(self) -> Ints: ...  # (r,) ascending

    @property
    def device(self) -> torch.device: ...  # of what `of` gives

    def of(self, places: Ints) -> tuple[Tensor, Tensor]: ...  # image (b, D), text (b, D) of rows[places], unit rows


@dataclass(frozen=True)
class Second:
    """A second table: of which of the audited table's n rows it has the very bytes, and what its m images look like.

    name: as it is called where it is told of. same_bytes: (n,) bool.
    """

    name: str
    same_bytes: Bools
    looks: Looks


@dataclass(frozen=True)
class Evidence:
    """What is known of the n pairs of a table, in row order. Nothing here is changed by looking for issues.

    captions: n lists, those in force, mapped. image: (n,) int64, equal exactly where the image's bytes are.
    width, height: (n,) pixels as the index says. undecodable: (n,) bool, the image was tried and could not be decoded.
    looks: of the n rows' images. cosine, neg_clip_loss, p_noise: (n,) float32 of the model, NaN where a row could not
        be scored. no_noise_model: why p_noise says nothing, "" if it does.
    scale: 1/τ of the model. itm: (n,) float32, probability of a match by a fusion encoder, None without one.
    recalibrated: (n,) float32, p_noise made right by labels, None without labels.
    synthetic: (n,) float32, cosine of the image with the best synthetic caption, NaN without one; None for a table
        without such a column.
    features: None where they were not kept. without_features: the reason.
    seconds: tables to compare with. language: expected, "" for that of most captions.

    Memory for 10 M rows: 0.6 GB beside the mapped columns. Features are those the pass holds anyway (float32 of the
    distinct images and captions, 40 GB for 10 M pairs of 512 numbers), neither copied nor kept on disk.
    """

    captions: StringLists
    image: Ints
    width: NDArray[Any]
    height: NDArray[Any]
    undecodable: Bools
    looks: Looks
    cosine: Floats
    neg_clip_loss: Floats
    p_noise: Floats
    no_noise_model: str = ""
    scale: float = 1.0
    itm: Floats | None = None
    recalibrated: Floats | None = None
    synthetic: Floats | None = None
    features: Features | None = None
    without_features: str = "the features of this table are not at hand"
    seconds: tuple[Second, ...] = ()
    language: str = ""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Found:
    """score: (n,) float32 in [0, 1], higher is worse, NaN where a row was not judged.

    group: (n,) int64, rows of one group share a number, -1 where a row is in none; None for issues of single rows.
    """

    score: Floats
    group: Ints | None = None


def nothing_lacks(evidence: Evidence) -> str:
    """Of an issue that can always be looked for."""
    return ""


@dataclass(frozen=True)
class Issue:
    """One way in which pairs are bad.

    name: of its columns. title, explanation, score_says: the very text of the page; the explanation is honest about
        what the score cannot tell and where the threshold comes from.
    threshold: a row is flagged where its score is at least this. action: what to do with a flagged row.
    find: from evidence and threshold to scores; pure. lacks: why this evidence does not do for it, "" if it does.
    grouped: whether `find` puts rows together.
    """

    name: str
    title: str
    explanation: str
    score_says: str
    threshold: float
    action: Action
    find: Callable[[Evidence, float], Found]
    lacks: Callable[[Evidence], str] = nothing_lacks
    grouped: bool = False
