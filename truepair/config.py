"""What a run is: dataclasses, to and from TOML."""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from truepair.errors import UserError, reason

PLAIN = (bool, int, float, str)


@dataclass
class PairsConfig:
    """Which pairs are read, and how."""

    caption_column: str = ""  # the table's column of captions; empty: the one in force
    captions: int = 1  # captions of a row in a batch (K)
    synthetic: str = ""  # column of synthetic captions: of a row's K, the first is a raw one, the others are synthetic
    completion: Literal["both", "sample", "replace"] = "both"  # sample: each with probability p_noise
    replace_above: float = 0.5  # with completion "replace", pairs at least so noisy have synthetic captions alone
    draw: Literal["random", "first"] = "random"  # which K of a row's captions: anew each epoch, or always the first
    unique: Literal["none", "caption", "image", "both"] = "none"  # no equal images or lists of captions in a batch
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
    """AdamW, warm-up, cosine decay to zero; no decay on norms, biases, scale. Defaults are open_clip's for ViTs."""

    beta1: float = 0.9  # of the gradient's running mean
    beta2: float = 0.98  # of its square's
    eps: float = 1e-6  # added to the root of the latter
    weight_decay: float = 0.2  # on matrices only
    warmup: int = -1  # steps; -1: a tenth of the run, at most 2000
    clip_grad_norm: float = 1.0  # longer gradients are cut to this; 0: off (ours)
    accumulation: int = 1  # micro-batches a batch is cut into; negatives stay those of the whole batch


@dataclass
class NoiseConfig:
    """The model of which pairs are mismatched: a mixture over the per-pair losses of each epoch."""

    warmup_epochs: int = 3  # epochs before the first fit; ours, see docs/noise-model.md
    loss_source: Literal["epoch", "pass"] = "epoch"  # of its steps, or of all pairs in a pass at its end
    average: float = 0.0  # share of its former value that a pair's loss keeps (0: the last epoch's loss alone)


@dataclass
class CompletionConfig:
    """Captions that the run writes itself for the pairs it doubts, in the middle, to learn from afterwards (nlip)."""

    start: int = 0  # epochs before they are written, --noise.warmup-epochs or more; 0: never
    mode: Literal["sample", "replace", "both"] = "sample"  # how they serve, see --pairs.completion
    min_p_noise: float = 0.5  # pairs at least so noisy get one; ours
    accept: Literal["all", "better"] = "better"  # better: more similar to the image than the raw caption; ours
    margin: float = 2.0  # by so much at least [logits]; 2: seven times as likely; ours
    decoding: Literal["nucleus", "beam", "greedy"] = "beam"  # truepair caption --help; ours


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
    tensorboard: bool = False  # needs truepair[tensorboard]
    wandb: str = ""  # project name; needs truepair[wandb]
    keep_checkpoints: int = 2  # the newest ones


@dataclass
class RunConfig:
    """A training run."""

    data: str = ""  # pair table (needed)
    out: str = ""  # the run's directory (needed)
    method: str = "clip"  # one of docs/methods.md, clip to never; --method NAME --help shows its options
    model: str = ""  # open_clip model name or local-dir:DIR; empty: the method's tiny one, fit for a CPU
    pretrained: str = ""  # open_clip tag or file of weights to start from
    epochs: int = 32  # passes over the pairs in use
    batch_size: int = 256  # global: of all ranks together
    lr: float = 5e-4  # peak learning rate
    seed: int = 0  # of order, crops, captions and initial weights
    workers: int = -1  # decoding processes a rank; -1: by the number of cores
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware computes in it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    compile: bool = False  # torch.compile both towers, and on a GPU the losses
    checkpoint_steps: int = 0  # save every so many steps (0: off)
    checkpoint_minutes: float = 10.0  # save whenever so much time has passed; the end is always saved
    keep: str = ""  # Parquet with a column `row`, or DataComp's .npy of uids: the pairs to train on
    pairs: PairsConfig = field(default_factory=PairsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)  # of the method


def from_toml(path: str | Path) -> RunConfig:
    """Read a run's configuration; unknown or ill-typed entries raise UserError naming them."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"configuration {path} cannot be read: {reason(error)}") from None
    config: RunConfig = filled(RunConfig, values, str(path))
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
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan and inf, as TOML writes them and JSON does not
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one character that JSON allows in a string and TOML does not


def filled(kind: Any, values: dict[str, Any], where: str) -> Any:
    """The dataclass `kind` with the entries of `values`, each checked against its annotated type.

    Raises UserError, beginning with `where`, for an entry that is unknown or of another type.
    """
    types, entries = get_type_hints(kind), {}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{where}: unknown entry {name!r}; known are {', '.join(types) or 'none'}")
        if dataclasses.is_dataclass(types[name]) and isinstance(value, dict):
            entries[name] = filled(types[name], value, f"{where} [{name}]")
        else:
            entries[name] = _checked(types[name], value, f"{where}: {name}")
    return kind(**entries)


def _checked(kind: Any, value: Any, where: str) -> Any:
    """A TOML value as the type `kind`; raises UserError if it is of another."""
    shape, parts = get_origin(kind) or kind, get_args(kind)
    if shape is Literal:
        if value in parts:
            return value
        raise UserError(f"{where} = {value!r} should be one of {', '.join(parts)}")
    if shape is tuple and isinstance(value, list) and len(value) == len(parts):
        return tuple(_checked(part, item, where) for part, item in zip(parts, value, strict=True))
    if shape is float and type(value) is int:
        return float(value)
    if type(value) is not shape:
        wanted = f"list of {len(parts)}" if shape is tuple else "section" if shape not in PLAIN else shape.__name__
        raise UserError(f"{where} = {value!r} should be a {wanted}")
    return value
