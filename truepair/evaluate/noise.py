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
from truepair.noise.scores import NEGATIVES, cosine, neg_clip_loss_against, sampled
from truepair.noise.tables import TRUTH
from truepair.pairs.table import PairTable

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

ROWS_AT_ONCE = 65_536  # whose features are put together


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


@dataclass(frozen=True)
class RowFeatures:
    """Features of the r rows that have an image and a caption, put together when asked for: no copy of all is made.

    features: those of the distinct images and captions. rows: (r,) rows of the table, ascending.
    texts: (C',) numbers of the captions, row by row: the row at place p owns texts[ends[p] : ends[p + 1]].
    device: where `of` puts what it gives.
    """

    features: PairFeatures
    rows: Integers
    texts: Integers
    ends: Integers
    device: torch.device

    def of(self, places: Integers) -> tuple[Tensor, Tensor]:
        """Image (b, D) and mean of the captions (b, D) of rows[places], float32 unit rows."""
        first, count = self.ends[places], np.diff(self.ends)[places]
        owner = np.repeat(np.arange(len(places)), count)
        captions = np.arange(len(owner)) + np.repeat(first - (np.cumsum(count) - count), count)
        total = torch.zeros(len(places), self.features.texts.shape[1])
        total.index_add_(0, torch.from_numpy(owner), self.features.texts[torch.from_numpy(self.texts[captions])])
        image = self.features.images[torch.from_numpy(self.features.image_of_row[self.rows[places]])]
        return image.to(self.device), normalize(total.to(self.device), dim=1)


def row_features(model: Encoder, table: PairTable, features: PairFeatures) -> RowFeatures:
    """Those of all rows of `table`, whose features these are. Raises UserError if no row can be scored."""
    usable = features.image_of_row[features.row_of_caption] >= 0
    rows, count = np.unique(features.row_of_caption[usable], return_counts=True)
    if not len(rows):
        raise UserError(f"no pair of {table.path} could be scored: {reasons(features.skipped)}")
    ends = np.concatenate([[0], np.cumsum(count)])
    return RowFeatures(features, rows, features.text_of_caption[usable], ends, model.device)


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
    itm = None if own is None else own.of_rows()
    return scores_of(model, table, row_features(model, table, features), itm, scale, negatives=negatives, seed=seed)


def scores_of(
    model: Encoder,
    table: PairTable,
    rows: RowFeatures,
    itm: Floats | None,
    scale: float | None = None,
    *,
    negatives: int = NEGATIVES,
    seed: int = 0,
) -> PairScores:
    """`score_pairs` of a table whose images and captions are encoded; `itm` is what the fusion encoder said, if any.

    Memory beside the features: those of ROWS_AT_ONCE pairs on the device, and of the `negatives`.
    """
    scale = float(model.scale.detach()) if scale is None else scale
    every = np.arange(len(rows.rows))
    sample = sampled(len(every), negatives, seed)
    images, texts = rows.of(sample)
    cosines, scores = np.empty((2, len(every)), np.float32)
    for start in range(0, len(every), ROWS_AT_ONCE):
        places = every[start : start + ROWS_AT_ONCE]
        image, text = rows.of(places)
        cosines[places] = cosine(image, text).cpu().numpy()
        numbers, among = (torch.from_numpy(part).to(model.device) for part in (places, sample))
        found = neg_clip_loss_against(image, text, numbers, images, texts, among, scale)
        scores[places] = found.cpu().numpy()
    if not np.isfinite(cosines).all():
        raise UserError(
            f"model {model.name} gives features that are not finite; it cannot score the pairs of {table.path}"
        )
    column = _column(len(table), rows.rows, scores)
    mixture = fit_losses(-column)
    p_noise = np.where(np.isnan(column), np.nan, mixture.posterior(-column)).astype(np.float32)
    of_all = _column(len(table), rows.rows, cosines)
    return PairScores(of_all, column, p_noise, mixture, rows.features.skipped, itm)


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


def _column(n: int, rows: npt.NDArray[np.int64], values: Floats) -> Floats:
    column = np.full(n, np.nan, np.float32)
    column[rows] = values
    return column
