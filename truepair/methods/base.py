"""What a method is: how far to believe a pair, how far to believe a relation, and which extra heads it trains."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from truepair.errors import UserError
from truepair.models.dual import SCALE_BOUND, DualEncoder
from truepair.models.likeness import Precision
from truepair.models.run_captioner import RunCaptioner
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class Needs:
    """What a method asks of the rest of the house. The loop reads it; nothing else has to change for a new method."""

    captions: int = 1  # K captions a row at least
    most_captions: int | None = None  # and at most
    images: bool = False  # `Pairs.images`
    apart: bool = True  # equal captions should not meet in a batch: the method takes them for negatives
    views: int = 1  # V independent crops an image
    columns: tuple[str, ...] = ()  # numeric columns of the table
    model: str = ""  # what `--model` means when it is not given; empty: truepair-tiny
    scale_bounds: tuple[float, float] = (1.0, SCALE_BOUND)  # 1/τ is kept in these
    init_scale: float | None = None  # initial 1/τ of a fresh model, None: the model's own
    init_bias: float | Literal["negatives"] | None = None  # initial logit bias of a fresh model, None: no bias;
    # "negatives": -ln(negatives per positive) of the batch, at which a sigmoid loss starts without a push


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass
class Inputs:
    """One micro-batch of b pairs on the device."""

    images: Tensor  # (V, b, 3, S, S) uint8, augmented
    tokens: Tensor  # (b·K, L)
    columns: dict[str, Tensor] = field(default_factory=dict)  # (b, …) the columns asked for in `Needs`
    seeds: Tensor = field(default_factory=_none)  # (b,) int64, random bits of each pair and step (`losses.random`)
    observed: dict[str, Tensor] = field(default_factory=dict)  # what `observe` returned, for `embed`


@dataclass
class Features:
    """What `embed` makes of the inputs. Every tensor's first dimension is b, or b·K for what is one per caption.

    `extra` may hold anything else a method computes for each sample: what `embed` puts there (a per-sample
    language-modelling loss) is cached, concatenated and differentiated as the two embeddings are; for `loss`, what
    `observe` returned is there too, constant and of any type.
    """

    image: Tensor  # (b, D) unit rows
    text: Tensor  # (b·K, D) unit rows
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """What is known of the B pairs of this rank's part of a batch."""

    rows: Tensor  # (B,) row numbers in the table
    p_noise: Tensor  # (B,) float32 of the noise model; zeros until its first fit
    columns: dict[str, Tensor]  # the columns asked for in `Needs`
    epoch: float  # epochs done so far, with fraction
    epochs: int  # of the whole run
    captions: Tensor = field(default_factory=_none)  # (B·K,) int64, equal where texts are
    images: Tensor = field(default_factory=_none)  # (B,) int64, equal where images are, if asked for in `Needs`
    seeds: Tensor = field(default_factory=_none)  # (B,) as in `Inputs`
    synthetic: Tensor | None = None  # (B·K,) bool, which captions a captioner wrote; None: none


@dataclass(frozen=True)
class Loss:
    """Result of a method: `total` to descend, `per_pair` for the noise model, `logs` to print."""

    total: Tensor  # () as `losses.weighted_mean` returns it: its mean over ranks is the global loss
    per_pair: Tensor  # (B,) without gradient; high means hard to believe (of raw captions, where some are synthetic)
    logs: dict[str, Tensor] = field(default_factory=dict)  # () each, local to the rank; averaged over ranks
    confidence: Tensor | None = None  # (B,) in [0, 1] without gradient, how far the method itself believes each pair
    noisy: Tensor | None = None  # (B,) bool, pairs it treated as mismatched in this step


class Method(nn.Module):
    """A method is a file with a dataclass of options and this class. Extra heads are its sub-modules.

    `embed` and `observe` run on micro-batches and see the model; `fuse` and `loss` run once on the whole batch and see
    features only, so gradient caching (`--optim.accumulation`), gathering and precision stay outside of every method.
    A checkpoint holds a method's state_dict; parameters that do not require a gradient (a twin's) are not trained.
    """

    Options: ClassVar[type[Any]]
    needs: Needs = Needs()  # set it on the instance, in `__init__`, where it depends on the options

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        """Called once when the model exists, before the optimiser does: build a twin, or heads of the model's width.

        table: the pairs it will learn from; captions: of its rows, the raw ones. For whoever needs a vocabulary.
        The model has its first weights and is on the CPU; a resumed run loads the saved ones, and the method's, later.
        Do not keep `model` as an attribute: it would be saved and trained twice.
        """

    def embed(self, model: DualEncoder, inputs: Inputs) -> Features:
        """Features of b pairs, with gradient. Override to add tokens, or a per-sample loss."""
        return Features(model.encode_image(inputs.images[0]), model.encode_text(inputs.tokens))

    def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
        """What `loss` needs of b pairs and learns nothing through: a twin's features, masks; by default nothing.

        Called without gradient, once for each micro-batch, right before its `embed`, which finds it in
        `inputs.observed`. First dimension b, or b·K for what is one per caption; any dtype. It is put into the whole
        batch's `Features.extra`, under names that `embed` does not use. The student's own features are in `Features`
        already: `.detach()` them there.
        """
        return {}

    def fuse(self, features: Features, scale: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """What the method's own heads make of several pairs at once, with gradient; by default nothing.

        Called once on the whole batch between `embed` and `loss`, in the precision of the towers. Put into
        `Features.extra` for `loss`, under names of its own. All of its activations are kept, whatever the accumulation.
        """
        return {}

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        """Loss of this rank's B pairs against the global batch; scale () = 1/τ, bias () or None. Without autocast."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        """Loss of a model that tells nothing apart: ln(B) for softmax, + ½ ln(K); None where it has no such level."""
        return math.log(batch_size) + math.log(captions) / 2

    def writer(self, model: DualEncoder, *, name: str, step: int, precision: Precision) -> RunCaptioner | None:
        """Who writes captions for this run's pairs, made of its live modules (`[completion]`); None: nobody can.

        name, step: of the run, for the columns' provenance. precision: in which it is to write.
        """
        return None

    def complaint(self, figures: dict[str, float]) -> str | None:
        """A sentence to warn with, once a run, from a step's `Loss.logs` (means over ranks); None: all is well."""
        return None

    def after_step(self, model: DualEncoder) -> None:
        """Called after every optimiser step (a momentum twin follows the student here)."""


def feature_column(pairs: Pairs, name: str, dimensions: tuple[int, ...]) -> Tensor:
    """The features (B, …) float32 that the table's column `name` holds; `dimensions`: how many there may be with B.

    Raises UserError if the column has others, or a value that is not finite.
    """
    values = pairs.columns[name]
    if values.ndim not in dimensions:
        wanted = " or ".join({2: "a vector", 3: "several vectors"}[n] for n in dimensions)
        raise UserError(
            f"column {name!r} has shape (n, {', '.join(map(str, values.shape[1:]))}); {wanted} a row is needed"
        )
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise UserError(f"column {name!r} has values that are not finite, in rows {pairs.rows[~finite][:8].tolist()}")
    return values.float()
