"""CLIP: every pair is believed, no relation is (Radford et al., 2021, arXiv 2103.00020, fig. 3)."""

from dataclasses import dataclass

from torch import Tensor

from truepair.losses import per_pair_mean, softmax_pairs, weighted_mean
from truepair.methods.base import Features, Loss, Method, Pairs


@dataclass(frozen=True)
class ClipOptions:
    """CLIP has no options."""


class Clip(Method):
    """L = ½ mean_i [ -log p_ii(image→text) - log p_ii(text→image) ], p the softmax of s = f gᵀ/τ."""

    Options = ClipOptions

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        i2t, t2i = softmax_pairs(features.image, features.text, scale)  # (B,), (B·K,)
        rows = per_pair_mean(i2t, t2i)  # (B,)
        return Loss(weighted_mean(rows), rows.detach())
