"""Checkpoints: whole or absent, each one also a model that open_clip loads by itself."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from truepair.config import RunConfig
from truepair.errors import UserError, reason
from truepair.methods import method_class
from truepair.models.dual import save_local_dir
from truepair.pairs.order import Order
from truepair.pairs.table import PairTable
from truepair.train.ledger import Ledger
from truepair.train.step import Trainee

# What must not change between the runs that write and continue a checkpoint, or it would not be the same run.
IDENTITY = (
    *("method", "model", "pretrained", "precision", "batch_size", "epochs", "lr", "seed"),
    *("pairs", "augment", "optim", "noise", "completion", "options"),
)

DAMAGE = (SafetensorError, pickle.PickleError, zipfile.BadZipFile)  # how its three kinds of file say they are broken


def identity(config: RunConfig, order: Order, table: PairTable) -> dict[str, Any]:
    """What makes a run itself: of its configuration, and of its data the rows in use and every row's image.

    A table may move, be copied or gain columns; one that was indexed anew from other data is another.
    """
    values = dataclasses.asdict(config)
    digest = hashlib.sha256(order.rows.tobytes())
    digest.update(table.strings("sha").blob.tobytes())
    captions = config.pairs.caption_column or table.caption_column
    return {name: values[name] for name in IDENTITY} | {"captions": captions, "pairs in use": digest.hexdigest()[:16]}


@dataclass
class Checkpoint:
    """A checkpoint on disk: `checkpoints/step-NNNNNNNN` of a run."""

    folder: Path

    @property
    def step(self) -> int:
        """Steps done when it was written."""
        return int(self.folder.name.removeprefix("step-"))


def newest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, None if there is none."""
    found = sorted(run.glob("checkpoints/step-*/identity.json"))
    return Checkpoint(found[-1].parent) if found else None


def save(
    run: Path,
    step: int,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    ledger: Ledger,
    made_by: dict[str, Any],
    keep_last: int,
) -> Checkpoint:
    """Write the state after `step` steps: under a temporary name, flushed to the disk, then renamed.

    Older checkpoints than the last `keep_last` are removed afterwards. A kill at any moment leaves the former ones.
    Raises UserError if the disk is full or refuses.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_local_dir(trainee.model, partial)
        torch.save({"optimizer": optimizer.state_dict(), "method": trainee.method.state_dict()}, partial / "state.pt")
        ledger.save(partial / "ledger.npz")
        (partial / "identity.json").write_text(json.dumps(made_by, indent=1))
        for file in partial.iterdir():
            _to_disk(file)
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own name for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"checkpoint {folder} cannot be written: {reason(error)}; the former is whole") from error
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    _to_disk(folder.parent)
    for old in sorted(folder.parent.glob("step-*"))[:-keep_last]:
        shutil.rmtree(old)
    return Checkpoint(folder)


def load(
    checkpoint: Checkpoint,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    ledger: Ledger,
    wanted_by: dict[str, Any],
) -> None:
    """Bring everything back to the state after `checkpoint.step` steps. Raises UserError if it is of another run."""
    folder = checkpoint.folder
    try:
        saved = json.loads((folder / "identity.json").read_text())
        if not isinstance(saved, dict):
            raise ValueError("identity.json holds no table of values")
        if different := _difference(saved, wanted_by):
            name, former, now = different
            raise UserError(
                f"{folder} was written with {name} = {former!r}, this run has {now!r}; "
                "resume with the former value, or train on from its weights: --model local-dir:CHECKPOINT"
            )
        weights = load_file(folder / "open_clip_model.safetensors")
        state = torch.load(folder / "state.pt", map_location=trainee.model.device, weights_only=True)
        trainee.model.clip.load_state_dict(weights)
        trainee.method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        ledger.load(folder / "ledger.npz")
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, *DAMAGE) as error:
        raise UserError(f"checkpoint {folder} does not fit this run: {reason(error)}") from error


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first entry that two identities do not share, as (its name, saved, wanted).

    A setting that one of them lacks, for it is younger than the checkpoint, has its default there.
    """
    default = dataclasses.asdict(RunConfig())
    default = {name: default[name] for name in IDENTITY}
    default["options"] = dataclasses.asdict(method_class(wanted["method"]).Options())
    former, now = (_flat(default) | _flat(values) for values in (saved, wanted))
    different = (name for name in now | former if former.get(name) != now.get(name))
    return next(((name, former.get(name), now.get(name)) for name in different), None)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The entries of sections by dotted name, as JSON holds them."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        flat |= {f"{name}.{entry}": v for entry, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
