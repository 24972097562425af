"""Everything a run consists of, put together from its configuration."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from truepair.config import RunConfig, filled, to_toml
from truepair.errors import UserError
from truepair.losses.distributed import rank, world_size
from truepair.methods import Method, method_class
from truepair.models.dual import DEFAULT, DualEncoder, create
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
    start: int  # steps done before
    steps: int  # of the whole run

    @property
    def world(self) -> int:
        """Number of ranks."""
        return world_size()

    @property
    def local(self) -> int:
        """Pairs of a batch on this rank."""
        return self.config.batch_size // world_size()

    def save(self, step: int) -> None:
        """Write a checkpoint (rank 0; all ranks hold the same)."""
        if rank() == 0:
            keep = self.config.log.keep_checkpoints
            identity = checkpoint.identity(self.config)
            checkpoint.save(self.folder, step, self.trainee, self.optimizer, self.ledger, identity, keep)


def assemble(config: RunConfig, device: torch.device, resume: bool) -> Job:
    """Build the job of a run, from its newest checkpoint if `resume`. Raises UserError for whatever does not fit."""
    table = PairTable.open(config.data)
    order = _order(config, table)
    method = _method(config)
    folder = _folder(config, resume)
    if config.optim.accumulation not in range(1, config.batch_size // world_size() + 1):
        raise UserError(f"--optim.accumulation {config.optim.accumulation} does not cut the batch of a rank into parts")

    torch.manual_seed(config.seed)
    needs = method.needs
    model = create(
        config.model or DEFAULT,
        pretrained=config.pretrained or None,
        init_scale=needs.init_scale,
        init_bias=needs.init_bias,
    )
    if needs.init_bias is None and model.bias is not None:
        model.clip.logit_bias.requires_grad_(False)  # the method has no use for it, and DDP waits for every gradient
    trainee = Trainee(model, method).to(device).to(memory_format=torch.channels_last).train()
    if config.compile:
        model.compile_towers()
    optimizer = adamw(trainee, config.optim, config.lr)
    ledger = Ledger(len(table), config.noise)
    saved = checkpoint.newest(folder) if resume else None
    if saved:
        checkpoint.load(saved, trainee, optimizer, ledger, checkpoint.identity(config))

    source = BatchSource(
        table,
        order,
        model.tokenizer,
        model.pad_id,
        model.image_size,
        captions=max(config.pairs.captions, needs.captions),
        draw=config.pairs.draw,
        views=needs.views,
        crop_scale=config.pairs.crop_scale,
        caption_column=config.pairs.caption_column,
        columns=needs.columns,
        seed=config.seed,
        rank=rank(),
        world=world_size(),
    )
    parallel = DistributedDataParallel(trainee) if world_size() > 1 else trainee  # waits until every rank is here
    _claim(folder, config)
    steps = order.steps * config.epochs
    start = saved.step if saved else 0
    return Job(
        config, folder, device, table, order, source, model, method, trainee, parallel, optimizer, ledger, start, steps
    )


def _order(config: RunConfig, table: PairTable) -> Order:
    caption = config.pairs.caption_column or table.caption_column
    apart = {"none": [], "caption": [caption], "image": ["sha"], "both": [caption, "sha"]}[config.pairs.unique]
    rows = rows_in_use(table, config.keep, config.pairs.max_p_noise)
    groups = [table.groups(name) for name in apart]
    order = Order(rows, config.batch_size, config.seed, config.pairs.block, config.pairs.window, groups)
    order.local(0, 0, rank(), world_size())  # complains of a batch size that the ranks do not divide
    for name in (caption, "offset", "size", "source", "path", "width", "height"):
        table.column(name)  # mapped here once, so that no worker has to
    return order


def _method(config: RunConfig) -> Method:
    kind = method_class(config.method)
    return kind(filled(kind.Options, config.options, f"options of {config.method}"))


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
