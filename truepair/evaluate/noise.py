"""Scores every pair of a table with a model, makes noise probabilities of it, and measures them against the truth."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.evaluate.features import Encoder, Progress, Skipped, reasons
from truepair.evaluate.pairs import PairFeatures, encode_pairs
from truepair.evaluate.result import benchmark_json
from truepair.noise import DetectionFigures, Mixture, detection, fit_losses
from truepair.noise.scores import NEGATIVES, cosine, neg_clip_loss
from truepair.noise.tables import TRUTH
from truepair.pairs.table import PairTable

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PairScores:
    """One score a row for all n rows of a table; NaN where the row could not be scored.

    cosine, neg_clip_loss: (n,) float32, higher matches better. p_noise: (n,) float32 in [0, 1], from `mixture`.
    mixture: fitted to -neg_clip_loss; if `mixture.degenerate` is not "", p_noise is 0 and says nothing.
    skipped: (row, reason) of the rows without scores.
    """

    cosine: Floats
    neg_clip_loss: Floats
    p_noise: Floats
    mixture: Mixture
    skipped: list[Skipped]


@dataclass(frozen=True)
class NoiseResult:
    """How well a model tells mismatched pairs from matched ones.

    figures: of the n scored pairs; the three ranking figures are those of neg_clip_loss, the calibration error is that
        of p_noise.
    degenerate: why the mixture means nothing, "" if it is sound.
    """

    figures: DetectionFigures
    degenerate: str
    dataset: str
    model: str
    skipped: dict[str, int]

    def to_json(self, pretrained: str = "") -> dict[str, Any]:
        """The result in CLIP_benchmark's fields, under a task name of our own: "noise_detection"."""
        metrics: Mapping[str, float] = {
            name: value for name, value in asdict(self.figures).items() if name not in ("n", "rate")
        }
        return benchmark_json(self.dataset, self.model, pretrained, "noise_detection", metrics)


def score_pairs(
    model: Encoder,
    table: PairTable,
    *,
    scale: float | None = None,
    negatives: int = NEGATIVES,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> PairScores:
    """Score every row of `table` by its image and the mean of its captions' features, as one sentence would be.

    `scale`: inverse temperature of neg_clip_loss, by default the model's own. `negatives`, `seed`: the sample of pairs
    that each is compared with.
    Raises UserError if no row can be scored, or the model has diverged.
    """
    features = encode_pairs(model, table, batch_size=batch_size, workers=workers, progress=progress)
    scored, text = _mean_captions(features)
    if not len(scored):
        raise UserError(f"no pair of {table.path} could be scored: {reasons(features.skipped)}")
    image = features.images[features.image_of_row[scored]].to(model.device)
    text = text.to(model.device)
    scale = float(model.scale.detach()) if scale is None else scale
    cosines = cosine(image, text)
    if not bool(cosines.isfinite().all()):
        raise UserError(
            f"model {model.name} gives features that are not finite; it cannot score the pairs of {table.path}"
        )
    scores = _column(len(table), scored, neg_clip_loss(image, text, scale, negatives=negatives, seed=seed))
    mixture = fit_losses(-scores)
    p_noise = np.where(np.isnan(scores), np.nan, mixture.posterior(-scores)).astype(np.float32)
    return PairScores(_column(len(table), scored, cosines), scores, p_noise, mixture, features.skipped)


def noise_detection(
    model: Encoder,
    table: PairTable,
    *,
    truth: str = TRUTH,
    scores: PairScores | None = None,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> NoiseResult:
    """Score every pair of a table (unless `scores` are given) and compare with its column `truth`, true = mismatched.

    Raises UserError if the table has no such column.
    """
    is_noise = table.numbers(truth)
    if scores is None:
        scores = score_pairs(model, table, batch_size=batch_size, workers=workers, progress=progress)
    return NoiseResult(
        figures=detection_figures(scores, is_noise),
        degenerate=scores.mixture.degenerate,
        dataset=table.path.name,
        model=model.name,
        skipped=reasons(scores.skipped),
    )


def detection_figures(scores: PairScores, is_noise: npt.NDArray[Any]) -> DetectionFigures:
    """Figures over the scored rows: rankings by neg_clip_loss (p_noise has plateaus), calibration of p_noise."""
    seen = ~np.isnan(scores.neg_clip_loss)
    ranking = detection(-scores.neg_clip_loss[seen], is_noise[seen])
    return replace(ranking, ece=detection(scores.p_noise[seen], is_noise[seen]).ece)


def _mean_captions(features: PairFeatures) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Rows (r,) with an image and a caption, and the normalised mean of their captions' features (r, D)."""
    usable = features.image_of_row[features.row_of_caption] >= 0
    scored, group = np.unique(features.row_of_caption[usable], return_inverse=True)
    total = torch.zeros(len(scored), features.texts.shape[1])
    owner, text = torch.from_numpy(group), torch.from_numpy(features.text_of_caption[usable])
    for rows, texts in zip(torch.split(owner, 65_536), torch.split(text, 65_536), strict=True):
        total.index_add_(0, rows, features.texts[texts])
    return scored, normalize(total, dim=1)


def _column(n: int, rows: npt.NDArray[np.int64], values: Tensor) -> Floats:
    column = np.full(n, np.nan, np.float32)
    column[rows] = values.cpu().numpy()
    return column
