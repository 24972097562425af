"""Watches a run: figures of steps and epochs, evaluations, and the trouble they tell of."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate import ImageClasses, retrieval, zero_shot
from truepair.evaluate.examples import COUNT, write_retrieved
from truepair.losses.distributed import rank, total, world_size
from truepair.methods.base import Loss
from truepair.noise import detection
from truepair.noise.tables import TRUTH
from truepair.pairs.batches import Batch
from truepair.pairs.table import PairTable
from truepair.train.devices import workers_of
from truepair.train.ledger import Opinion
from truepair.train.logs import Clock, RunLog, cut
from truepair.train.measuring import pass_losses
from truepair.train.optim import warmup_steps
from truepair.train.setup import Job
from truepair.train.trouble import Trouble


@dataclass
class Step:
    """Figures of one step, some still on the device."""

    step: int
    lr: float
    values: dict[str, Tensor]  # () each
    repeated: int
    captions: int


class Monitor:
    """Collects what the loop tells it, without making the device wait, and writes it out every few steps."""

    def __init__(self, job: Job) -> None:
        config = job.config
        self.job = job
        self.log = RunLog(job.folder, config.log, steps=job.steps, start=job.start, speaks=rank() == 0)
        chance = job.method.chance_loss(config.batch_size, job.source.captions)
        self.trouble = Trouble(chance, warmup_steps(config.optim, job.steps), job.method.needs.scale_bounds[1])
        self.clock = Clock()
        self.seconds = 0.0
        self.samples = 0
        self.skipped: Counter[str] = Counter()
        self.skipped_file = job.folder / (f"skipped-rank{rank()}.jsonl" if rank() else "skipped.jsonl")
        cut(self.skipped_file, job.start)
        self.figures: dict[str, Any] = {}  # of the last evaluation
        self._pending: list[Step] = []
        self._epoch: dict[str, list[float]] = defaultdict(list)  # the loss and the method's own figures, of its steps
        self._complained = False  # the method, of what it sees

    def __enter__(self) -> "Monitor":
        self.log.__enter__()
        job, config = self.job, self.job.config
        size = sum(p.numel() for p in job.trainee.parameters() if p.requires_grad) / 1e6
        self.log.say(
            f"{config.method} · {job.model.name} ({size:.1f} M parameters) · {len(job.order.rows):,} pairs · batch "
            f"{config.batch_size} · {job.steps:,} steps in {config.epochs} epochs · {world_size()} x {job.device.type}"
        )
        if job.start:
            self.log.say(f"resuming after step {job.start:,}")
        if config.pairs.synthetic and config.pairs.completion == "both" and job.source.captions == 1:
            self.log.say(
                "warning: with --pairs.captions 1 synthetic captions serve only rows without a raw one; take 2 or "
                "more, or --pairs.completion sample",
                style="yellow",
            )
        if config.noise.warmup_epochs >= config.epochs:
            self.log.say(
                f"warning: the noise model is first fitted after epoch {config.noise.warmup_epochs} "
                f"(--noise.warmup-epochs), and this run ends after {config.epochs}: a method that goes by p_noise "
                "(gate, nlip) does here what clip does",
                style="yellow",
            )
        if job.without_caption:
            self.log.say(f"left out {job.without_caption:,} pairs that have no caption", style="yellow")
        return self

    def __exit__(self, *exception: object) -> None:
        self.log.__exit__(*exception)

    @property
    def rate(self) -> float:
        """Samples a second of all ranks, over the training steps of this process."""
        return self.samples / self.seconds if self.seconds else 0.0

    def step(self, step: int, batch: Batch, loss: Loss, lr: float, scale: Tensor, grad_norm: Tensor) -> None:
        """Note a step. Nothing is read from the device yet."""
        values = {"loss": loss.total, "scale": scale, "grad_norm": grad_norm, **loss.logs}
        tensors = {name: value.detach().float() for name, value in values.items()}
        self._pending.append(Step(step, lr, tensors, batch.repeated_captions, len(batch.tokens)))
        if batch.skipped:
            self.skipped.update(skip.reason for skip in batch.skipped)
            with self.skipped_file.open("a", encoding="utf-8") as file:
                for skip in batch.skipped:
                    file.write(json.dumps({"step": step, **vars(skip)}) + "\n")

    def flush(self) -> None:
        """Write the pending steps out. Raises UserError if a loss was not finite, naming the rows."""
        if not self._pending:
            return
        broken = self.job.ledger.flush()
        names = list(self._pending[0].values)
        stacked = torch.stack([torch.stack([step.values[name] for name in names]) for step in self._pending])
        figures = (total(stacked) / world_size()).tolist()  # (steps, names)
        samples = len(self._pending) * self.job.config.batch_size
        rate, wait = self.clock.read(samples)
        self.seconds += samples / rate
        self.samples += samples
        for step, row in zip(self._pending, figures, strict=True):
            found = dict(zip(names, row, strict=True))
            for name in found.keys() - {"scale", "grad_norm"}:
                self._epoch[name].append(found[name])
            share = step.repeated / step.captions
            epoch = step.step / self.job.order.steps
            speed = {"samples_per_s": round(rate, 1), "data_wait": round(wait, 4)}
            self.log.write("train", step.step, epoch=epoch, lr=step.lr, repeated_captions=share, **found, **speed)
            repeated = step.repeated if self.job.method.needs.apart else 0
            sentences = self.trouble.watch(step.step, found["loss"], found["scale"], repeated, step.captions)
            for sentence in [*sentences, *self._complaint(found)]:
                self.log.say(f"warning: {sentence}", style="yellow")
        last = self._pending[-1]
        epoch = math.ceil(last.step / self.job.order.steps)
        self.log.advance(last.step, f"epoch {epoch}/{self.job.config.epochs}", figures[-1][0], rate, wait)
        self._pending.clear()
        self.clock.reset()
        if len(broken) or not np.isfinite(np.array(figures)[:, :3]).all():  # loss, scale, norm of the gradient
            raise UserError(
                f"loss or gradient stopped being finite in the steps up to {last.step}, at rows "
                f"{broken[:8].tolist()}{' …' if len(broken) > 8 else ''} of {self.job.table.path}; the last checkpoint "
                "is sound. Try a lower --lr, --optim.clip-grad-norm 1, --precision fp32, or look at these rows"
            )

    def _complaint(self, figures: dict[str, float]) -> list[str]:
        """What the method has to say of its own figures, the first time it does."""
        sentence = None if self._complained else self.job.method.complaint(figures)
        self._complained |= sentence is not None
        return [] if sentence is None else [sentence]

    def end_of_epoch(self, step: int) -> None:
        """Refit the noise model, from its warm-up on, and tell what the pairs are held to be and what was not read."""
        epoch = step // self.job.order.steps
        noise = self._noise(step, epoch)
        means = {name: float(np.mean(values)) for name, values in sorted(self._epoch.items())}
        self._epoch.clear()
        loss = means.pop("loss", math.nan)
        if self.job.ledger.opinion is not None:
            means.pop("noisy", None)  # `noise` says it already
        own = "".join(f" · {name} {value:.3g}" for name, value in means.items())
        self.log.say(
            f"epoch {epoch}/{self.job.config.epochs}: loss {loss:.3f} · {self.rate:,.0f} samples/s{noise}{own}"
        )
        if self.skipped:
            named = ", ".join(f"{reason} ({count})" for reason, count in self.skipped.most_common())
            self.log.say(f"images replaced by others so far, see {self.skipped_file.name}: {named}", style="yellow")

    def evaluates(self, step: int) -> bool:
        """Whether there is anything to evaluate after `step` steps."""
        job, config = self.job, self.job.config.eval
        epoch, rest = divmod(step, job.order.steps)
        due = step == job.steps or (config.every > 0 and epoch % config.every == 0)
        return bool(config.zeroshot or config.retrieval) and step > 0 and rest == 0 and due

    def _noise(self, step: int, epoch: int) -> str:
        """Refit where that is due, write what the noise model and the method think of the pairs, say it briefly."""
        job = self.job
        ledger, rows = job.ledger, job.order.rows
        truth = job.table.numbers(TRUTH)[rows] if TRUTH in job.table.column_names else None
        figures: dict[str, Any] = {}
        said = ""
        if epoch >= job.config.noise.warmup_epochs:
            figures |= self._fitted(epoch, truth)
            known = f" (AUROC {figures['auroc']:.3f})" if "auroc" in figures else ""
            said += f" · mean p_noise {figures['mean_p_noise']:.2f}{known}"
        if ledger.opinion is not None:
            figures |= judged(ledger.opinion, rows, truth)
            known = f" (AUROC of 1-c {figures['confidence_auroc']:.3f})" if truth is not None else ""
            said += f" · called noisy {figures['noisy_share']:.2f}{known}"
        if figures:
            self.log.write("noise", step, epoch=epoch, **figures)
            if self.log.speaks:
                ledger.write_columns(job.folder / "columns" / f"epoch-{epoch:04d}.parquet", rows)
        return said

    def _fitted(self, epoch: int, truth: NDArray[Any] | None) -> dict[str, Any]:
        """Refit the noise model; its figures. truth: of the rows in use, None: not known."""
        job = self.job
        if job.config.noise.loss_source == "pass":
            job.ledger.measured(*pass_losses(job))
        mixture = job.ledger.refit()
        p_noise = job.ledger.p_noise[job.order.rows]
        if mixture.degenerate:
            self.log.say(f"epoch {epoch}: no noise model ({mixture.degenerate}); p_noise is 0", style="yellow")
        figures: dict[str, Any] = {"mixture": mixture.to_dict(), "mean_p_noise": float(p_noise.mean())}
        if truth is None:
            return figures
        found = detection(p_noise, truth)
        return figures | {"auroc": found.auroc, "average_precision": found.average_precision, "ece": found.ece}

    def evaluate(self, step: int) -> None:
        """Zero-shot and retrieval figures after `step` steps, on rank 0, where due and not yet in metrics.jsonl."""
        if not self.log.speaks or not self.evaluates(step):
            return
        if not (figures := self.log.written("eval", step)):
            figures = self._figures()
            self.log.write("eval", step, epoch=step // self.job.order.steps, **figures)
            said = " · ".join(f"{name} {100 * value:.1f}" for name, value in figures.items())
            self.log.say(f"epoch {step // self.job.order.steps}: {said}")
        self.figures = figures

    def _figures(self) -> dict[str, Any]:
        job, config = self.job, self.job.config.eval
        figures: dict[str, Any] = {}
        workers = workers_of(self.job.config.workers)
        if config.zeroshot:
            classes = zero_shot(job.model, ImageClasses.open(config.zeroshot), workers=workers)
            figures |= {"top1": classes.top1, "top5": classes.top5}
        if config.retrieval:
            table = PairTable.open(config.retrieval)
            found = retrieval(job.model, table, workers=workers, examples=COUNT)
            write_retrieved(job.folder, table.path.resolve(), found.examples)
            figures |= {f"image_to_text_r{k}": value for k, value in found.image_to_text.items()}
            figures |= {f"text_to_image_r{k}": value for k, value in found.text_to_image.items()}
        return figures


def judged(opinion: Opinion, rows: NDArray[np.int64], truth: NDArray[Any] | None) -> dict[str, float]:
    """Figures of what a method thinks of the pairs in use, those that it has said something of.

    rows: (m,) in use. truth: (m,) 1 where really mismatched, None where it is not known. Returns the share it last
    called noisy and, with the truth, the AUROC of 1-c and how right its last calls are; NaN where undefined.
    """
    said = np.isfinite(opinion.confidence[rows])
    noisy = opinion.noisy[rows][said]
    figures = {"noisy_share": float(noisy.mean()) if len(noisy) else math.nan}
    if truth is None:
        return figures
    real = truth[said].astype(np.bool_)
    hits, called, mismatched = (int(mask.sum()) for mask in (noisy & real, noisy, real))
    return figures | {
        "confidence_auroc": detection(-opinion.confidence[rows][said], real).auroc,  # 1-c would round small c away
        "noisy_precision": hits / called if called else math.nan,
        "noisy_recall": hits / mismatched if mismatched else math.nan,
    }
