"""Where ranks meet: features gathered with gradient, means over the global batch. One process needs none of it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Concatenation over ranks; backward sums every rank's gradient of the part that was ours."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((x.shape[0] * world_size(), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        if dist.get_backend() == "nccl":
            own = grad.new_empty((grad.shape[0] // world_size(), *grad.shape[1:]))
            dist.reduce_scatter_tensor(own, grad)
            return own
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def all_gather(x: Tensor) -> Tensor:
    """(B, …) of every rank -> (W·B, …), in rank order, differentiable. All ranks must hold the same B."""
    if world_size() == 1:
        return x
    if not x.requires_grad:
        out = x.new_empty((x.shape[0] * world_size(), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        return out
    gathered: Tensor = _AllGather.apply(x)
    return gathered


def evened(x: Tensor) -> Tensor:
    """(B, L, …) of any L -> (B, L', …): cut or padded with zeros to the last place that any rank uses, 1 at least."""
    used = x.detach().flatten(2).any(dim=2) if x.ndim > 2 else x.detach().bool()
    last = torch.where(used.any(dim=0), torch.arange(1, x.shape[1] + 1, device=x.device), 0).amax().clamp_min(1)
    all_reduce_max(last)
    length = int(last)
    if length <= x.shape[1]:
        return x[:, :length]
    return torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], dim=1)


def total(x: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Σ w·v / Σ w over the global batch, from this rank's values and weights (B,); 0 if all weights are.

    Its value differs between ranks (each holds W times its own share), so that the mean over ranks — what DDP makes of
    the gradients — is the global weighted mean and its gradient.
    """
    weight = torch.ones_like(values) if weight is None else weight.to(values.dtype)
    whole = total(weight.sum())
    return (values * weight).sum() * world_size() / whole.clamp_min(torch.finfo(values.dtype).tiny)


def all_reduce_sum(x: Tensor) -> None:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x)


def all_reduce_max(x: Tensor) -> None:
    """Element-wise maximum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)


def all_reduce_min(x: Tensor) -> None:
    """Element-wise minimum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MIN)
