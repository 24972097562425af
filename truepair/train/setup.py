"""Everything a run consists of, put together from its configuration."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from truepair.config import RunConfig, filled, to_toml
from truepair.errors import UserError
from truepair.evaluate import ImageClasses
from truepair.losses import compile_tiles
from truepair.losses.distributed import rank, world_size
from truepair.methods import Method, method_class
from truepair.models.dual import DEFAULT, DualEncoder, create
from truepair.models.run_captioner import RunCaptioner
from truepair.noise import detection
from truepair.noise.tables import TRUTH
from truepair.pairs.batches import BatchSource
from truepair.pairs.order import Order
from truepair.pairs.subset import rows_in_use
from truepair.pairs.table import PairTable
from truepair.train import checkpoint
from truepair.train.ledger import Ledger
from truepair.train.optim import adamw
from truepair.train.step import Trainee


@dataclass
class Job:
    """The parts of a run on this rank, in the state in which it starts or goes on."""

    config: RunConfig
    folder: Path
    device: torch.device
    table: PairTable
    order: Order
    source: BatchSource
    model: DualEncoder
    method: Method
    trainee: Trainee
    parallel: nn.Module  # the trainee, inside DDP where there are several ranks
    optimizer: torch.optim.Optimizer
    ledger: Ledger
    identity: dict[str, Any]  # what a checkpoint must share with the run that goes on from it
    start: int  # steps done before
    steps: int  # of the whole run
    without_caption: int  # rows left out because they have none

    @property
    def world(self) -> int:
        """Number of ranks."""
        return world_size()

    @property
    def completion_step(self) -> int:
        """Steps done when the run writes captions itself; 0: it never does."""
        return self.config.completion.start * self.order.steps

    @property
    def local(self) -> int:
        """Pairs of a batch on this rank."""
        return self.config.batch_size // world_size()

    def writer(self) -> RunCaptioner:
        """Who writes the captions of `completed`: the model and the method's captioner as they are now."""
        return _writer(self.config, self.method, self.model, self.completion_step)

    def save(self, step: int) -> None:
        """Write a checkpoint (rank 0; all ranks hold the same)."""
        if rank() == 0:
            keep = self.config.log.keep_checkpoints
            checkpoint.save(self.folder, step, self.trainee, self.optimizer, self.ledger, self.identity, keep)


def assemble(config: RunConfig, device: torch.device, resume: bool) -> Job:
    """Build the job of a run, from its newest checkpoint if `resume`. Raises UserError for whatever does not fit."""
    _check(config)
    table = PairTable.open(config.data)
    order, without_caption = _order(config, table)
    method = _method(config)
    folder = _folder(config, resume)
    most = method.needs.most_captions
    if most is not None and _captions(config, method) > most:
        raise UserError(
            f"{config.method} takes {most} caption{'s' * (most > 1)} an image at most: --pairs.captions {most}"
        )
    if config.completion.start and config.completion.mode == "both" and _captions(config, method) < 2:
        raise UserError("--completion.mode both shows a raw caption beside a synthetic one: take --pairs.captions 2")
    if config.eval.zeroshot:
        ImageClasses.open(config.eval.zeroshot)  # complains now rather than after training
    if config.eval.retrieval:
        PairTable.open(config.eval.retrieval)
    if TRUTH in table.column_names:
        detection(np.zeros(len(order.rows)), table.numbers(TRUTH)[order.rows])

    torch.manual_seed(config.seed)
    needs = method.needs
    init_bias = -math.log(config.batch_size - 1) if needs.init_bias == "negatives" else needs.init_bias
    model = create(
        config.model or needs.model or DEFAULT,
        pretrained=config.pretrained or None,
        init_scale=needs.init_scale,
        init_bias=init_bias,
    )
    if needs.init_bias is None and model.bias is not None:
        model.clip.logit_bias.requires_grad_(False)  # the method has no use for it, and DDP waits for every gradient
    method.bind(model, table, table.captions(config.pairs.caption_column))
    if config.completion.start:
        _writer(config, method, model, step=0)  # complains before anything is written
    trainee = Trainee(model, method).to(device).to(memory_format=torch.channels_last).train()
    if config.compile:
        if device.type == "cuda":
            compile_tiles()
        for towers in trainee.modules():
            if isinstance(towers, DualEncoder):  # the model's, and a twin's
                towers.compile_towers()
    optimizer = adamw(trainee, config.optim, config.lr)
    ledger = Ledger(len(table), config.noise)
    identity = checkpoint.identity(config, order, table)
    saved = checkpoint.newest(folder) if resume else None
    if saved:
        checkpoint.load(saved, trainee, optimizer, ledger, identity)

    source = BatchSource(
        table,
        order,
        model.tokenizer,
        model.pad_id,
        model.image_size,
        captions=_captions(config, method),
        draw=config.pairs.draw,
        views=needs.views,
        crop_scale=config.pairs.crop_scale,
        caption_column=config.pairs.caption_column,
        synthetic=config.pairs.synthetic,
        completion=config.pairs.completion,
        replace_above=config.pairs.replace_above,
        columns=needs.columns,
        image_groups=table.groups("sha") if needs.images else None,
        seed=config.seed,
        rank=rank(),
        world=world_size(),
    )
    for name in needs.columns:
        table.numbers(name)  # complains before anything is written
    parallel = DistributedDataParallel(trainee) if world_size() > 1 else trainee  # waits until every rank is here
    _claim(folder, config)
    steps = order.steps * config.epochs
    start = saved.step if saved else 0
    return Job(
        *(config, folder, device, table, order, source, model, method, trainee, parallel, optimizer, ledger),
        identity=identity,
        start=start,
        steps=steps,
        without_caption=without_caption,
    )


def _check(config: RunConfig) -> None:
    """Refuse what is missing and numbers that make no sense, all in one place."""
    if not config.data:
        raise UserError("say which pairs to train on: --data TABLE (truepair index makes one)")
    sound = {
        "epochs": config.epochs >= 1,
        "batch_size": config.batch_size >= 2,
        "lr": 0 < config.lr < math.inf,
        "seed": config.seed >= 0,
        "workers": config.workers >= -1,
        "checkpoint_steps": config.checkpoint_steps >= 0,
        "checkpoint_minutes": config.checkpoint_minutes >= 0,
        "pairs.captions": config.pairs.captions >= 1,
        "pairs.max_p_noise": 0 <= config.pairs.max_p_noise <= 1,
        "pairs.crop_scale": 0 < config.pairs.crop_scale[0] <= config.pairs.crop_scale[1] <= 1,
        "pairs.block": config.pairs.block >= 1,
        "pairs.window": config.pairs.window >= 1,
        "augment.flip": 0 <= config.augment.flip <= 1,
        "augment.jitter": 0 <= config.augment.jitter <= 1,
        "augment.grey": 0 <= config.augment.grey <= 1,
        "optim.beta1": 0 <= config.optim.beta1 < 1,
        "optim.beta2": 0 <= config.optim.beta2 < 1,
        "optim.eps": 0 < config.optim.eps < math.inf,
        "optim.weight_decay": 0 <= config.optim.weight_decay < math.inf,
        "optim.clip_grad_norm": config.optim.clip_grad_norm >= 0,
        "optim.accumulation": 1 <= config.optim.accumulation <= max(1, config.batch_size // world_size()),
        "noise.warmup_epochs": config.noise.warmup_epochs >= 0,
        "noise.average": 0 <= config.noise.average < 1,
        "pairs.replace_above": 0 <= config.pairs.replace_above <= 1,
        "completion.start": config.completion.start >= 0,
        "completion.margin": 0 <= config.completion.margin < math.inf,
        "completion.min_p_noise": 0 <= config.completion.min_p_noise <= 1,
        "eval.every": config.eval.every >= 0,
        "log.every": config.log.every >= 1,
        "log.keep_checkpoints": config.log.keep_checkpoints >= 1,
    }
    for name, fine in sound.items():
        if not fine:
            section, _, entry = name.rpartition(".")
            value = getattr(getattr(config, section) if section else config, entry)
            raise UserError(f"--{name.replace('_', '-')} {value} makes no sense; see truepair train --help")
    start, warmup = config.completion.start, config.noise.warmup_epochs
    if start >= config.epochs:
        raise UserError(
            f"--completion.start {start} leaves nothing to learn with the captions: --epochs is {config.epochs}; "
            "take a smaller start, or truepair caption after the run"
        )
    if start and config.pairs.synthetic:
        raise UserError(
            f"--pairs.synthetic {config.pairs.synthetic} takes synthetic captions from the table, --completion.start "
            f"{start} lets the run write its own; give one of the two"
        )
    if 0 < start < warmup:
        raise UserError(
            f"--completion.start {start} comes before the noise model's first fit, which --noise.warmup-epochs "
            f"{warmup} puts after epoch {warmup}: no pair would be doubted yet; take {warmup} or more"
        )


def _order(config: RunConfig, table: PairTable) -> tuple[Order, int]:
    """The order of the rows that are kept and have a caption, and how many of the kept have none."""
    caption = config.pairs.caption_column or table.caption_column
    apart = {"none": [], "caption": [caption], "image": ["sha"], "both": [caption, "sha"]}[config.pairs.unique]
    kept = rows_in_use(table, config.keep, config.pairs.max_p_noise)
    texts = [caption, config.pairs.synthetic] if config.pairs.synthetic else [caption]
    rows = kept[np.any([table.captions(name).counts[kept] > 0 for name in texts], axis=0)]
    groups = [table.groups(name) for name in apart]
    order = Order(rows, config.batch_size, config.seed, config.pairs.block, config.pairs.window, groups)
    order.local(0, 0, rank(), world_size())  # complains of a batch size that the ranks do not divide
    for name in (*texts, "offset", "size", "source", "path", "width", "height"):
        table.column(name)  # mapped here once, so that no worker has to
    for source in np.unique(table.numbers("source")[rows]).tolist():
        if not table.source_path(source).exists():
            raise UserError(
                f"{table.source_path(source)}, indexed in {table.path}, is gone; bring it back or index anew"
            )
    return order, len(kept) - len(rows)


def _captions(config: RunConfig, method: Method) -> int:
    """K: what the user asks for, or more if the method needs it."""
    return max(config.pairs.captions, method.needs.captions)


def _method(config: RunConfig) -> Method:
    kind = method_class(config.method)
    return kind(filled(kind.Options, config.options, f"options of {config.method}"))


def _writer(config: RunConfig, method: Method, model: DualEncoder, step: int) -> RunCaptioner:
    """Who writes captions for the run's pairs, by the name of its directory (which may move as a whole).

    Raises UserError if the method trains nobody who can.
    """
    writer = method.writer(model, name=Path(config.out).resolve().name, step=step, precision=config.precision)
    if writer is None:
        raise UserError(
            f"--completion.start {config.completion.start}: this run trains no captioner; take --method nlip with "
            "--options.captioning 1, or write captions beforehand (truepair caption)"
        )
    return writer


def _folder(config: RunConfig, resume: bool) -> Path:
    """The run's directory. A new run must not find another's there; `resume` takes it as it is."""
    if not config.out:
        raise UserError("say where the run is to be written: --out RUN")
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if not resume and (folder / "run.toml").exists():
        raise UserError(f"{folder} holds a run already; go on with --resume, or choose another --out")
    return folder


def _claim(folder: Path, config: RunConfig) -> None:
    """Make the directory this run's: free of what a kill left half-written, with its run.toml (rank 0).

    All ranks must have been through `_folder`.
    """
    if rank() == 0:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("checkpoints/.partial-*"):
            shutil.rmtree(rest)  # a kill while saving
        for file in folder.glob("columns/.*.partial-*"):
            file.unlink()
        partial = folder / ".run.toml.partial"
        partial.write_text(to_toml(config), encoding="utf-8")
        partial.replace(folder / "run.toml")
