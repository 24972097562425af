"""The loss of every pair as the model is now, against the same negatives for all: nothing random, nothing learnt."""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate.features import image_features, text_features
from truepair.losses.distributed import all_reduce_sum, rank, world_size
from truepair.noise.scores import NEGATIVES, neg_clip_loss_against
from truepair.pairs.table import PairTable
from truepair.train.devices import workers_of
from truepair.train.setup import Job

CHUNK = 1 << 16  # pairs whose features are held together

Rows = npt.NDArray[np.int64]


def pass_losses(job: Job) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Rows in use that could be read (m,), ascending, and their losses (m,) in nats, alike on every rank.

    A pair is its whole image, resized and cut as in evaluation, and its first raw caption; its loss is CLIP's in a
    batch with 4,096 pairs that the run's seed has drawn once (`noise.scores.neg_clip_loss`). Ranks share the rows; each
    encodes the negatives too.
    """
    every = np.sort(job.order.rows)
    every = every[job.table.captions(job.config.pairs.caption_column).counts[every] > 0]
    drawn = np.random.Generator(np.random.Philox(job.config.seed)).permutation(len(every))[:NEGATIVES]
    sample, images, texts = _features(job, every[np.sort(drawn)])
    mine, scale = every[rank() :: world_size()], job.model.scale.item()
    losses = torch.zeros(len(job.table), device=job.device)
    known = torch.zeros(len(job.table), dtype=torch.int32, device=job.device)
    for start in range(0, len(mine), CHUNK):
        rows, image, text = _features(job, mine[start : start + CHUNK])
        if not len(rows):
            continue
        losses[rows] = -scale * neg_clip_loss_against(image, text, rows, images, texts, sample, scale)
        known[rows] = 1
    all_reduce_sum(losses)
    all_reduce_sum(known)
    measured = np.flatnonzero(known.cpu().numpy())
    return measured, losses.cpu().numpy()[measured]


def _features(job: Job, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `rows` that can be read (m,), and the features of their images (m, D) and first captions (m, D)."""
    workers, captions = workers_of(job.config.workers), job.table.captions(job.config.pairs.caption_column)
    try:
        seen = image_features(job.model, partial(_read, job.table, rows), len(rows), workers=workers)
    except UserError:  # none of them can be read, a damaged shard: training goes on without it, and so does this
        nothing = torch.empty(0, job.model.config["embed_dim"], device=job.device)
        return torch.empty(0, dtype=torch.int64, device=job.device), nothing, nothing
    found = rows[seen.rows]
    texts = text_features(job.model, [captions[row][0] for row in found.tolist()])
    return torch.from_numpy(found).to(job.device), seen.features.to(job.device), texts.to(job.device)


def _read(table: PairTable, rows: Rows, place: int) -> bytes:
    return table.image_bytes(int(rows[place]))
