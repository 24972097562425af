"""What a run is: dataclasses, to and from TOML."""

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from truepair.errors import UserError


@dataclass
class PairsConfig:
    """Which pairs are read, and how."""

    caption_column: str = ""  # the table's column of captions; empty: the one in force
    captions: int = 1  # captions of a row in a batch (K), drawn anew each epoch
    unique: Literal["none", "caption", "image", "both"] = "none"  # never twice in one batch, as far as possible
    max_p_noise: float = 1.0  # leave out pairs that the table's column p_noise calls noisier than this
    crop_scale: tuple[float, float] = (0.9, 1.0)  # area of the random crop; open_clip's default
    block: int = 1024  # neighbouring rows read together
    window: int = 65536  # rows shuffled together


@dataclass
class AugmentConfig:
    """What is done to the pixels on the device, after the random crop."""

    flip: float = 0.0  # probability of a horizontal flip
    jitter: float = 0.0  # strength of brightness, contrast and saturation changes, each uniform in 1 ± jitter
    grey: float = 0.0  # probability of dropping the colour


@dataclass
class OptimConfig:
    """AdamW with warm-up and cosine decay to zero; no decay on norms, biases, scale. Defaults are open_clip's for ViTs."""

    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: int = -1  # steps; -1: a tenth of the run, at most 2000
    clip_grad_norm: float = 1.0  # 0: off
    accumulation: int = 1  # micro-batches a batch is cut into; negatives stay those of the whole batch


@dataclass
class NoiseConfig:
    """The model of which pairs are mismatched: a mixture over the per-pair losses of each epoch."""

    warmup_epochs: int = 3  # epochs before the first fit; ours, see docs/noise-model.md
    average: float = 0.0  # share of its former value that a pair's loss keeps (0: the last epoch's loss alone)


@dataclass
class EvalConfig:
    """What is measured while training."""

    zeroshot: str = ""  # image folder or CLIP_benchmark dataset
    retrieval: str = ""  # pair table
    every: int = 0  # epochs between evaluations; 0: only after the last


@dataclass
class LogConfig:
    """Where figures go besides metrics.jsonl."""

    every: int = 10  # steps between writes
    tensorboard: bool = False
    wandb: str = ""  # project name
    keep_checkpoints: int = 2


@dataclass
class RunConfig:
    """A training run. `options` are those of the method."""

    data: str = ""  # pair table
    out: str = ""  # the run's directory
    method: str = "clip"
    model: str = ""  # open_clip model name or local-dir:DIR; empty: truepair-tiny, fit for a CPU
    pretrained: str = ""  # open_clip tag or file of weights to start from
    epochs: int = 32
    batch_size: int = 256  # global: of all ranks together
    lr: float = 5e-4
    seed: int = 0
    workers: int = -1  # decoding processes a rank; -1: by the number of cores
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    compile: bool = False
    checkpoint_steps: int = 0  # save every so many steps (0: off)
    checkpoint_minutes: float = 10.0  # save whenever so much time has passed; the end is always saved
    keep: str = ""  # Parquet with a column `row`, or DataComp's .npy of uids: the pairs to train on
    pairs: PairsConfig = field(default_factory=PairsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    options: dict[str, Any] = field(default_factory=dict)


def from_toml(path: str | Path) -> RunConfig:
    """Read a run's configuration; unknown or ill-typed entries raise UserError naming them."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"configuration {path} cannot be read: {error}") from None
    config: RunConfig = _filled(RunConfig, values, str(path))
    return config


def to_toml(config: RunConfig) -> str:
    """The complete configuration as TOML."""
    values = dataclasses.asdict(config)
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for section, entries in values.items():
        if isinstance(entries, dict):
            lines += ["", f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in entries.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _filled(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass with the entries of `values`, each checked against the type of its default."""
    config = kind()
    for name, value in values.items():
        if not hasattr(config, name):
            known = ", ".join(f.name for f in dataclasses.fields(kind))
            raise UserError(f"{where}: unknown entry {name!r}; known are {known}")
        default = getattr(config, name)
        if dataclasses.is_dataclass(default):
            value = _filled(type(default), value, f"{where} [{name}]")
        elif isinstance(default, tuple):
            value = tuple(value)
        elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(value) is not type(default):
            raise UserError(f"{where}: {name} = {value!r} should be a {type(default).__name__}")
        setattr(config, name, value)
    return config
