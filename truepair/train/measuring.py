"""The loss of every pair as the model is now, against the same negatives for all: nothing random, nothing learnt."""

import numpy as np
import numpy.typing as npt
import torch

from truepair.evaluate.pairs import encode_pairs
from truepair.losses.distributed import all_reduce_sum, rank, world_size
from truepair.noise.scores import NEGATIVES, neg_clip_loss
from truepair.train.devices import workers_of
from truepair.train.setup import Job


def pass_losses(job: Job) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Rows in use that could be read (m,), ascending, and their losses (m,) in nats, alike on every rank.

    A pair is its whole image, resized and cut as in evaluation, and its first raw caption; its loss is CLIP's in a
    batch with 4,096 pairs that the run's seed has drawn once (`noise.neg_clip_loss`). Ranks share the rows; each
    encodes the negatives too.
    """
    every = np.sort(job.order.rows)
    drawn = np.random.Generator(np.random.Philox(job.config.seed)).permutation(len(every))[:NEGATIVES]
    mine, negatives = every[rank() :: world_size()], every[np.sort(drawn)]
    found = encode_pairs(
        job.model,
        job.table,
        rows=np.union1d(mine, negatives),
        captions_per_row=1,
        caption_column=job.config.pairs.caption_column,
        workers=workers_of(job.config.workers),
    )
    image, text = found.image_of_row[found.row_of_caption], found.text_of_caption
    readable = image >= 0
    rows = found.rows[found.row_of_caption[readable]]
    losses = -float(job.model.scale.detach()) * neg_clip_loss(
        found.images[image[readable]],
        found.texts[text[readable]],
        float(job.model.scale.detach()),
        sample=torch.from_numpy(np.flatnonzero(np.isin(rows, negatives))),
    )
    own = np.isin(rows, mine)
    return _of_all_ranks(rows[own], losses.numpy()[own], job)


def _of_all_ranks(
    rows: npt.NDArray[np.int64], losses: npt.NDArray[np.float32], job: Job
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Every rank's, ascending by row."""
    losses_of_row = torch.zeros(len(job.table), device=job.device)
    losses_of_row[torch.from_numpy(rows)] = torch.from_numpy(losses).to(job.device)
    known = torch.zeros(len(job.table), dtype=torch.int32, device=job.device)
    known[torch.from_numpy(rows)] = 1
    all_reduce_sum(losses_of_row)
    all_reduce_sum(known)
    found = np.flatnonzero(known.cpu().numpy())
    return found, losses_of_row.cpu().numpy()[found]
