"""gate: CLIP in which a pair counts as much as it is believed, 1 - p_noise. The simplest robust baseline (ours)."""

from dataclasses import dataclass

from torch import Tensor

from truepair.errors import UserError
from truepair.losses import per_pair_mean, softmax_pairs, weighted_mean
from truepair.methods.base import Features, Loss, Method, Pairs


@dataclass(frozen=True)
class GateOptions:
    """power: the weight is (1 - p_noise)^power; 1 is the plain expectation, more is stricter. Provenance: ours."""

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise UserError(f"gate's power is {self.power}; it must be 0 or more")


class Gate(Method):
    """L = Σ_i w_i l_i / Σ_i w_i, l_i CLIP's loss of the pair, w_i = 1 - p_noise_i.

    A doubted pair is not pulled together; it still serves as a negative for the others. The noise model decides when
    weighting starts (`--noise.warmup-epochs`): until its first fit p_noise is 0 and this is CLIP.
    """

    Options = GateOptions

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        i2t, t2i = softmax_pairs(features.image, features.text, scale)  # (B,), (B·K,)
        rows = per_pair_mean(i2t, t2i)  # (B,)
        weight = (1 - pairs.p_noise) ** self.options.power
        return Loss(weighted_mean(rows, weight), rows.detach(), {"weight": weight.mean()})
