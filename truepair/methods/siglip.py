"""SigLIP: every pair of the batch is a yes-or-no question of its own (Zhai et al., 2023, arXiv 2303.15343, eq. 1)."""

import math
from dataclasses import dataclass

from torch import Tensor

from truepair.losses import sigmoid_rows, weighted_mean
from truepair.methods.base import Features, Loss, Method, Needs, Pairs


@dataclass(frozen=True)
class SiglipOptions:
    """SigLIP has no options; its initial scale and bias are the paper's code's (10 and -10)."""


class Siglip(Method):
    """L = 1/B Σ_ij softplus(-z_ij y_ij), z = f gᵀ/τ + b, y = +1 for own pairs and -1 for all others."""

    Options = SiglipOptions
    needs = Needs(init_scale=math.log(10.0), init_bias=-10.0)

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        rows = sigmoid_rows(features.image, features.text, scale, bias)  # (B,), each over all B·K captions
        return Loss(weighted_mean(rows), rows.detach())

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        return None
