"""AdamW's parameter groups and the learning rate of a step."""

import math

import torch
from torch import nn

from truepair.config import OptimConfig


def adamw(module: nn.Module, config: OptimConfig, lr: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: norms, biases, logit scale and bias (fewer than 2 dimensions) have none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def warmup_steps(config: OptimConfig, steps: int) -> int:
    """Steps of linear warm-up in a run of `steps`."""
    return min(steps // 10, 2000) if config.warmup < 0 else config.warmup


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear to `peak` over `warmup` steps, then half a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
