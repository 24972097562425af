"""The stages of a run: it learns, writes captions for the pairs it doubts, and goes on with those (NLIP).

Which caption a doubted pair then shows follows from its p_noise when the captions were written, a column of the table
`completed`; how far a method believes the pair follows from the noise model's latest fit (`ledger`), to which a pair
that shows no raw caption any more brings the last loss of one.
"""

import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

import pyarrow as pa
import torch.distributed as dist

from truepair.annotate.caption import caption_table
from truepair.annotate.parts import Stopped
from truepair.errors import UserError, reason
from truepair.losses.distributed import rank, world_size
from truepair.models.image_to_text import Decoding
from truepair.pairs.batches import Batch, BatchSource, batches
from truepair.pairs.table import PairTable, new_folder
from truepair.train.devices import workers_of
from truepair.train.logs import Pace
from truepair.train.monitor import Monitor
from truepair.train.setup import Job

COLUMN = "synthetic"
FEW = 0.05  # share of the doubted pairs with a caption, below which a warning is due (ours)


def batches_of_stages(job: Job, monitor: Monitor, stop: Callable[[], bool]) -> Generator[Batch, None, None]:
    """The batches from `job.start` on. Between the stages, when the last step of the first is done and saved, captions
    are written; a run that was killed meanwhile goes on with them. They end there if `stop`, which says the same to
    every rank, says so while captions are written."""
    source, workers, pin = job.source, workers_of(job.config.workers), job.device.type == "cuda"
    first, stages = job.start, [job.completion_step, job.steps] if job.completion_step else [job.steps]
    for stage, end in enumerate(stages):
        if first >= end:
            continue
        if stage:
            try:
                source = _completed(job, monitor, stop)
            except Stopped:
                return
            monitor.clock.reset()
        with closing(batches(source, first, end, workers=workers, pin=pin)) as loader:
            yield from monitor.clock.over(loader)
        first = end


def _completed(job: Job, monitor: Monitor, stop: Callable[[], bool]) -> BatchSource:
    """What is learnt from after the captions are written; writes them if they are not there. All ranks."""
    folder, completion = job.folder / "completed", job.config.completion
    if not (folder / "table.json").exists():
        if job.start > job.completion_step:
            raise UserError(
                f"{folder}, from whose captions this run was learning, is gone; bring it back or train anew"
            )
        _write(job, monitor, stop)
        if world_size() > 1:
            dist.barrier()
    if rank() == 0:
        for rest in ("judged", "completed.parts", ".*judged.partial*"):  # the latter two are of a kill
            for path in job.folder.glob(rest):
                shutil.rmtree(path, ignore_errors=True)  # what another rank still reads may stay until the next resume
    table = PairTable.open(folder).reading_images_of(job.table)
    try:
        table.captions(COLUMN), table.numbers("p_noise")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder}, from whose captions this run learns, is damaged: {reason(error)}") from None
    return replace(
        job.source,
        table=table,
        synthetic=COLUMN,
        completion=completion.mode,
        replace_above=completion.min_p_noise,
    )


def _write(job: Job, monitor: Monitor, stop: Callable[[], bool]) -> None:
    """The table `completed` in the run's folder: the pairs, p_noise, synthetic captions, their scores and concepts."""
    completion, judged = job.config.completion, job.folder / "judged"
    if rank() == 0 and not judged.exists():
        with new_folder(judged) as staging:
            job.table.derive(staging, share=True).add_column("p_noise", job.ledger.p_noise, {"by": "truepair train"})
    if world_size() > 1:
        dist.barrier()
    doubted = int((job.ledger.p_noise >= completion.min_p_noise).sum())
    if doubted:
        monitor.log.say(f"writing captions for {doubted:,} pairs with p_noise >= {completion.min_p_noise}")
    else:
        mixture = job.ledger.mixture
        why = f" ({mixture.degenerate})" if mixture is not None and mixture.degenerate else ""
        monitor.log.say(
            f"warning: no pair has p_noise >= {completion.min_p_noise}{why}, so no captions are written; the run goes "
            "on with the raw ones. Try a later --completion.start, or a lower --completion.min-p-noise",
            style="yellow",
        )
    written = caption_table(
        PairTable.open(judged).reading_images_of(job.table),
        job.writer(),
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
        progress=Pace(monitor.log.say, len(job.table)),
        stop=stop,
    )
    if written is not None and doubted:
        few = written.rows < FEW * doubted
        dropped = ", ".join(f"{count:,} {why}" for why, count in written.skipped.items())
        monitor.log.say(
            f"captions for {written.rows:,} of {written.looked_at:,} doubted pairs, in {written.table}"
            + (f" (without: {dropped})" if dropped else "")
            + (
                "; that changes little: a later --completion.start lets the captioner learn more, a smaller "
                "--completion.margin keeps more"
                if few
                else ""
            ),
            style="yellow" if few else "",
        )
        figures = {"doubted": doubted, "captioned": written.rows, "better": written.better, "skipped": written.skipped}
        monitor.log.write("completion", job.completion_step, **figures)
