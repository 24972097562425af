"""The stages of a run: it learns, writes captions for the pairs it doubts, and goes on with those (NLIP)."""

import shutil
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import torch.distributed as dist

from truepair.annotate.caption import caption_table
from truepair.errors import UserError
from truepair.losses.distributed import rank, world_size
from truepair.models.image_to_text import Decoding
from truepair.pairs.batches import Batch, BatchSource, batches
from truepair.pairs.table import PairTable
from truepair.train.devices import workers_of
from truepair.train.monitor import Monitor
from truepair.train.setup import Job

COLUMN = "synthetic"


def batches_of_stages(job: Job, monitor: Monitor) -> Generator[Batch, None, None]:
    """The batches from `job.start` on. Between the stages, when the last step of the first is done and saved, captions
    are written; a run that was killed meanwhile goes on with them."""
    source, workers, pin = job.source, workers_of(job.config.workers), job.device.type == "cuda"
    first, stages = job.start, [job.completion_step, job.steps] if job.completion_step else [job.steps]
    for stage, end in enumerate(stages):
        if stage:
            source = _completed(job, monitor)
            monitor.clock.reset()
        if first < end:
            with closing(batches(source, first, end, workers=workers, pin=pin)) as loader:
                yield from monitor.clock.over(loader)
            first = end


def _completed(job: Job, monitor: Monitor) -> BatchSource:
    """What is learnt from after the captions are written; writes them if they are not there. All ranks."""
    folder, completion = job.folder / "completed", job.config.completion
    if not (folder / "table.json").exists():
        if job.start > job.completion_step:
            raise UserError(
                f"{folder}, from whose captions this run was learning, is gone; bring it back or train anew"
            )
        _write(job, monitor)
        if world_size() > 1:
            dist.barrier()
    return replace(
        job.source,
        table=PairTable.open(folder),
        synthetic=COLUMN,
        completion=completion.mode,
        replace_above=completion.min_p_noise,
    )


def _write(job: Job, monitor: Monitor) -> None:
    """The table `completed` in the run's folder: the pairs, p_noise, synthetic captions, their scores and concepts."""
    completion, judged = job.config.completion, job.folder / "judged"
    writer = job.method.writer(job.model)
    assert writer is not None  # `assemble` has refused methods without one
    if rank() == 0 and not judged.exists():
        partial = job.folder / ".judged.partial"
        shutil.rmtree(partial, ignore_errors=True)
        job.table.derive(partial).add_column("p_noise", job.ledger.p_noise, {"by": "truepair train"})
        partial.rename(judged)
    if world_size() > 1:
        dist.barrier()
    monitor.log.say(f"writing captions for pairs with p_noise >= {completion.min_p_noise}")
    written = caption_table(
        PairTable.open(judged),
        writer,
        job.folder / "completed",
        name=COLUMN,
        decoding=Decoding(completion.decoding, min_tokens=1),  # it has learnt from these how long captions are
        min_p_noise=completion.min_p_noise,
        accept=completion.accept,
        margin=completion.margin if completion.accept == "better" else 0.0,
        raw=job.config.pairs.caption_column,
        seed=job.config.seed,
        workers=workers_of(job.config.workers),
        overwrite=True,
    )
    if written is not None:
        shutil.rmtree(judged)
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in written.skipped.items())
        monitor.log.say(
            f"captions for {written.rows:,} of {written.looked_at:,} doubted pairs, in {written.table}"
            + (f" (without: {dropped})" if dropped else "")
        )
