"""The whole training loop, top to bottom."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truepair.config import RunConfig
from truepair.losses.distributed import rank
from truepair.methods.base import Inputs, Pairs
from truepair.pairs import draws
from truepair.train.augment import augment
from truepair.train.completion import batches_of_stages
from truepair.train.devices import agree, autocast, peak_memory, ranks
from truepair.train.monitor import Monitor
from truepair.train.optim import learning_rate, warmup_steps
from truepair.train.setup import assemble
from truepair.train.step import forward_backward


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Path
    step: int  # steps done, of `steps`
    steps: int
    samples_per_s: float  # of all ranks, over the training steps of this process
    figures: dict[str, Any]  # of the last evaluation (rank 0)
    interrupted: bool  # by SIGTERM or SIGINT, with everything saved
    peak_memory: int  # bytes this process used at most: on its GPU, else resident


def train(config: RunConfig, *, resume: bool = False) -> Result:
    """Train `config.model` by `config.method` on the pair table `config.data`, into the run directory `config.out`.

    Under torchrun every rank calls this with the same configuration; `batch_size` is that of all ranks together.
    With `resume` it goes on from the newest checkpoint, to the same end as if it had never stopped.
    Raises UserError for whatever the user can mend.
    """
    with ranks(config.device) as device:
        job = assemble(config, device, resume)
        local, warmup = job.local, warmup_steps(config.optim, job.steps)
        saved_at = time.monotonic()
        done = job.start

        def told_to_stop() -> bool:
            return agree([bool(signals)], device)[0]

        with (
            _stop_signals() as signals,
            Monitor(job) as monitor,
            closing(batches_of_stages(job, monitor, told_to_stop)) as loader,
        ):
            monitor.evaluate(job.start)  # if a kill came between saving and evaluating
            for step, batch in enumerate(loader, job.start):
                torch.manual_seed(_mixed(config.seed, step, rank()))  # dropout: a function of the step
                for group in job.optimizer.param_groups:
                    group["lr"] = learning_rate(step, job.steps, warmup, config.lr)

                p_noise = job.ledger.believe(batch.rows).to(device)
                here = batch.to(device)
                images = here.images.permute(0, 1, 4, 2, 3)  # (V, b, 3, S, S), channels last in memory
                images = augment(
                    images, config.augment, seed=config.seed, step=step, first=rank() * local, total=local * job.world
                )
                drawn = draws.bits(batch.rows.numpy(), config.seed, step, draws.METHOD)
                seeds = torch.from_numpy(drawn.view(np.int64)).to(device)
                pairs = Pairs(
                    rows=here.rows,
                    p_noise=p_noise,
                    columns=here.columns,
                    epoch=step / job.order.steps,
                    epochs=config.epochs,
                    captions=here.caption_ids,
                    images=here.image_ids,
                    seeds=seeds,
                    synthetic=here.synthetic,
                )

                loss = forward_backward(
                    job.parallel,
                    Inputs(images, here.tokens, here.columns, seeds),
                    pairs,
                    micro_batches=config.optim.accumulation,
                    precision=autocast(config.precision, device),
                )
                bound = config.optim.clip_grad_norm or math.inf
                grad_norm = torch.nn.utils.clip_grad_norm_(job.trainee.parameters(), bound)
                job.optimizer.step()
                job.optimizer.zero_grad()
                job.model.clamp_scale(*job.method.needs.scale_bounds)
                job.method.after_step(job.model)

                done = step + 1
                raw = ~batch.synthetic.view(len(batch.rows), -1).all(dim=1)
                job.ledger.record(batch.rows, loss.per_pair, raw, loss.confidence, loss.noisy)
                monitor.step(done, batch, loss, job.optimizer.param_groups[0]["lr"], job.model.scale, grad_norm)
                end_of_epoch = done % job.order.steps == 0
                late = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                stop, late = agree([bool(signals), late], device)
                planned = config.checkpoint_steps > 0 and done % config.checkpoint_steps == 0
                stage_ends = done in (job.completion_step, job.steps)
                save = planned or late or stop or stage_ends or monitor.evaluates(done)
                if save or end_of_epoch or done % config.log.every == 0:
                    monitor.flush()
                if end_of_epoch:
                    monitor.end_of_epoch(done)
                if save:
                    job.save(done)
                    saved_at = time.monotonic()
                monitor.evaluate(done)
                if save or end_of_epoch:
                    monitor.clock.reset()
                if stop:
                    break
            if interrupted := done < job.steps:
                monitor.log.say(f"stopped after step {done:,} of {job.steps:,}; saved, go on with --resume")
            return Result(job.folder, done, job.steps, monitor.rate, monitor.figures, interrupted, peak_memory(device))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT comes; a second SIGINT interrupts at once."""
    seen: list[int] = []

    def note(number: int, _: Any) -> None:
        seen.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mixed(seed: int, step: int, rank: int) -> int:
    """One seed of three numbers."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63
