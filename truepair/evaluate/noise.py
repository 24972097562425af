"""Scores every pair of a table with a model, makes noise probabilities of it, and measures them against the truth."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.evaluate.features import Encoder, Progress, Skipped, reasons, towers_of
from truepair.evaluate.matched import OwnPairs
from truepair.evaluate.pairs import PairFeatures, encode_pairing, pairing
from truepair.evaluate.result import benchmark_json
from truepair.models.matcher import Matcher
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
    itm: (n,) float32 in [0, 1], probability of a match by the model's fusion encoder, the mean over the row's captions;
        None if it has none.
    """

    cosine: Floats
    neg_clip_loss: Floats
    p_noise: Floats
    mixture: Mixture
    skipped: list[Skipped]
    itm: Floats | None = None


@dataclass(frozen=True)
class NoiseResult:
    """How well a model tells mismatched pairs from matched ones.

    figures: of the n scored pairs; the three ranking figures are those of neg_clip_loss, the calibration error is that
        of p_noise.
    degenerate: why the mixture means nothing, "" if it is sound.
    itm: the figures of 1 - itm on the same pairs, None without a fusion encoder.
    """

    figures: DetectionFigures
    degenerate: str
    dataset: str
    model: str
    skipped: dict[str, int]
    itm: DetectionFigures | None = None

    def to_json(self, pretrained: str = "") -> dict[str, Any]:
        """The result in CLIP_benchmark's fields, under a task name of our own: "noise_detection"."""
        metrics = _metrics(self.figures)
        if self.itm is not None:
            metrics |= {f"itm_{name}": value for name, value in _metrics(self.itm).items()}
        return benchmark_json(self.dataset, self.model, pretrained, "noise_detection", metrics)


def score_pairs(
    model: Encoder | Matcher,
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

    A `Matcher` has its fusion encoder asked too, caption by caption, in the same pass over the images.
    `scale`: inverse temperature of neg_clip_loss, by default the model's own. `negatives`, `seed`: the sample of pairs
    that each is compared with.
    Raises UserError if no row can be scored, or the model has diverged.
    """
    paired = pairing(table)
    own = OwnPairs(model, paired) if isinstance(model, Matcher) else None
    model = towers_of(model)
    see = None if own is None else own.see
    features = encode_pairing(model, table, paired, batch_size=batch_size, workers=workers, progress=progress, see=see)
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
    itm = None if own is None else own.of_rows()
    return PairScores(_column(len(table), scored, cosines), scores, p_noise, mixture, features.skipped, itm)


def noise_detection(
    model: Encoder | Matcher,
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
        model=towers_of(model).name,
        skipped=reasons(scores.skipped),
        itm=itm_figures(scores, is_noise),
    )


def detection_figures(scores: PairScores, is_noise: npt.NDArray[Any]) -> DetectionFigures:
    """Figures over the scored rows: rankings by neg_clip_loss (p_noise has plateaus), calibration of p_noise."""
    seen = ~np.isnan(scores.neg_clip_loss)
    ranking = detection(-scores.neg_clip_loss[seen], is_noise[seen])
    return replace(ranking, ece=detection(scores.p_noise[seen], is_noise[seen]).ece)


def itm_figures(scores: PairScores, is_noise: npt.NDArray[Any]) -> DetectionFigures | None:
    """Figures of 1 - itm over the scored rows; None without a fusion encoder."""
    if scores.itm is None:
        return None
    seen = ~np.isnan(scores.itm)
    return detection(1 - scores.itm[seen].astype(np.float64), is_noise[seen])


def _metrics(figures: DetectionFigures) -> dict[str, float]:
    return {name: value for name, value in asdict(figures).items() if name not in ("n", "rate")}


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
