"""Forward and backward of one batch: at once, or in micro-batches that keep the whole batch's negatives."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from truepair.methods.base import Features, Inputs, Loss, Method, Pairs
from truepair.models.dual import DualEncoder


class Trainee(nn.Module):
    """All that is trained, as one module: the towers and the method's own heads."""

    def __init__(self, model: DualEncoder, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, inputs: Inputs, pairs: Pairs | None = None, cotangents: "Cotangents | None" = None) -> Any:
        """With `pairs`: the Loss of the whole batch. With `cotangents`: a scalar whose gradient is the batch loss's."""
        if pairs is not None:
            self.observe(inputs)
            return self.loss(joined(self.method.embed(self.model, inputs), inputs.observed), pairs)
        assert cotangents is not None
        return cotangents.surrogate(self.method.embed(self.model, inputs), self.shared())

    @torch.no_grad()
    def observe(self, inputs: Inputs) -> None:
        """Have the method observe a micro-batch, without graph."""
        inputs.observed = self.method.observe(self.model, inputs)

    def loss(self, features: Features, pairs: Pairs) -> Loss:
        """The method's loss of the whole batch, in full precision; its heads before that in the surrounding one."""
        features = joined(features, self.method.fuse(features, self.model.scale.detach(), pairs))
        with torch.autocast(features.image.device.type, enabled=False):
            return self.method.loss(features, self.model.scale, self.model.bias, pairs)

    def shared(self) -> list[Tensor]:
        """Parameters that the loss uses directly, beside the features: logit scale and bias, the method's own."""
        clip = self.model.clip
        bias = [] if clip.logit_bias is None else [clip.logit_bias]
        return [p for p in (clip.logit_scale, *bias, *self.method.parameters()) if p.requires_grad]


class Cotangents:
    """Gradients of the batch loss with respect to the features of one micro-batch (and, once, to shared parameters)."""

    def __init__(self, features: dict[str, Tensor], shared: list[Tensor | None]) -> None:
        self.features = features
        self.shared = shared

    def surrogate(self, features: Features, shared: list[Tensor]) -> Tensor:
        """Σ feature · its gradient: differentiating it continues backward where the batch loss's stopped."""
        tensors = _tensors(features)
        terms = [(tensors[name] * gradient).sum() for name, gradient in self.features.items()]
        for parameter, gradient in zip(shared, self.shared, strict=True):
            terms.append((parameter * (0.0 if gradient is None else gradient)).sum())
        return torch.stack(terms).sum()


def forward_backward(trainee: nn.Module, inputs: Inputs, pairs: Pairs, micro_batches: int, precision: Any) -> Loss:
    """Leave the gradient of the batch's loss in the parameters and return the loss.

    trainee: a `Trainee` or DDP around one. micro_batches: n > 1 embeds the batch n-fold twice (first without graph),
    so that activations of only one n-th are alive: representation caching, Gao et al. 2021 (GradCache). What the
    method observes needs no gradient and is computed once.
    Batch-norm statistics are then those of a micro-batch, and are updated once.
    """
    if micro_batches == 1:
        with precision:
            loss: Loss = trainee(inputs, pairs)
        torch.autograd.backward(loss.total)
        return loss

    inner: Trainee = trainee.module if isinstance(trainee, DistributedDataParallel) else trainee  # type: ignore[assignment]
    parts = _split(inputs, micro_batches, len(pairs.rows))
    states = []
    cached: list[dict[str, Tensor]] = []
    with torch.no_grad(), precision, _without_running_statistics(inner):
        for part in parts:
            inner.observe(part)
            states.append(_random_state(part.tokens.device))
            cached.append(_tensors(inner.method.embed(inner.model, part)))

    whole = _concatenated(cached)
    leaves = {name: tensor.requires_grad_() for name, tensor in whole.items() if tensor.is_floating_point()}
    shared = inner.shared()
    features = joined(_features(whole), _concatenated([part.observed for part in parts]))
    with precision:
        loss = inner.loss(features, pairs)
    gradients = torch.autograd.grad(loss.total, [*leaves.values(), *shared], allow_unused=True)
    of_shared: list[Tensor | None] = list(gradients[len(leaves) :])
    by_name = {
        name: torch.split(gradient, [len(tensors[name]) for tensors in cached])
        for name, gradient in zip(leaves, gradients, strict=False)
        if gradient is not None
    }

    none_of_shared: list[Tensor | None] = [None] * len(shared)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        mine = {name: pieces[i] for name, pieces in by_name.items()}
        cotangents = Cotangents(mine, of_shared if last else none_of_shared)
        waiting = nullcontext() if last or not isinstance(trainee, DistributedDataParallel) else trainee.no_sync()
        with waiting, _restored(states[i], part.tokens.device):
            with precision:
                surrogate: Tensor = trainee(part, cotangents=cotangents)
            torch.autograd.backward(surrogate)
    return loss


def joined(features: Features, more: dict[str, Tensor]) -> Features:
    """The features, with what was observed or fused among their `extra`. Raises ValueError if a name is taken."""
    if taken := features.extra.keys() & more.keys():
        raise ValueError(f"two of embed, observe and fuse return {', '.join(sorted(taken))}")
    return Features(features.image, features.text, features.extra | more)


def _tensors(features: Features) -> dict[str, Tensor]:
    return {"image": features.image, "text": features.text, **features.extra}


def _concatenated(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _features(tensors: dict[str, Tensor]) -> Features:
    extra = {name: tensor for name, tensor in tensors.items() if name not in ("image", "text")}
    return Features(tensors["image"], tensors["text"], extra)


def _split(inputs: Inputs, parts: int, pairs: int) -> list[Inputs]:
    """Micro-batches of whole pairs: images by the second dimension, tokens K to a pair."""
    captions = inputs.tokens.shape[0] // pairs
    tokens = inputs.tokens.view(pairs, captions, -1).tensor_split(parts)
    images = inputs.images.tensor_split(parts, dim=1)
    seeds = inputs.seeds.tensor_split(parts)
    columns = {name: values.tensor_split(parts) for name, values in inputs.columns.items()}
    return [
        Inputs(images[i], tokens[i].flatten(0, 1), {name: pieces[i] for name, pieces in columns.items()}, seeds[i])
        for i in range(parts)
    ]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _restored(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """The random state of the first pass, so that dropout repeats itself."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
    yield


@contextmanager
def _without_running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch and leave their running ones alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
