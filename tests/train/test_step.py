"""A batch cut into micro-batches has the gradient of the whole batch."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from truepair.losses import per_pair_mean, softmax_rows, weighted_mean
from truepair.methods.base import Features, Inputs, Loss, Method, Pairs
from truepair.methods.gate import Gate, GateOptions
from truepair.methods.siglip import Siglip
from truepair.models.dual import DualEncoder, create
from truepair.train.step import Trainee, forward_backward

B, K = 10, 2


class Headed(Method):
    """A method with a head of its own in the loss, a random layer in `embed`, and something extra per sample."""

    @dataclass(frozen=True)
    class Options:
        dropout: float = 0.5

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(32, 32)
        self.temper = nn.Parameter(torch.tensor(0.7))

    def embed(self, model: DualEncoder, inputs: Inputs) -> Features:
        plain = super().embed(model, inputs)
        noisy = nn.functional.normalize(self.dropout(plain.image), dim=-1)
        return Features(noisy, plain.text, {"second": self.head(plain.image), "unused": plain.text * 2})

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        i2t = softmax_rows(features.image, features.text, scale * self.temper)
        t2i = softmax_rows(features.text, features.image, scale)
        rows = per_pair_mean(i2t, t2i) + features.extra["second"].square().sum(dim=1)
        return Loss(weighted_mean(rows, 1 - pairs.p_noise), rows.detach())


def batch(seed: int = 0) -> tuple[Inputs, Pairs]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (1, B, 3, 32, 32), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(1, 40_000, (B * K, 8), generator=draw)
    tokens[:, 5], tokens[:, 6:] = 49_407, 0
    pairs = Pairs(torch.arange(B), torch.rand(B, generator=draw), {}, 0.0, 1)
    return Inputs(images, tokens), pairs


def gradients(method: Method, parts: int, dtype: torch.dtype, model: str = "truepair-test") -> tuple[Loss, dict]:
    torch.manual_seed(0)
    trainee = Trainee(create(model, init_bias=-10.0 if isinstance(method, Siglip) else None), method).to(dtype)
    torch.manual_seed(7)
    loss = forward_backward(trainee, *batch(), micro_batches=parts, precision=nullcontext())
    return loss, {name: p.grad for name, p in trainee.named_parameters()}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers that compute in float64, which the model as it is leaves for float32 at its ends."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("parts", [2, 4, 10])  # 10 pairs: even, uneven and single ones
@pytest.mark.parametrize("kind", [Gate, Siglip, Headed])
def test_gradients_do_not_depend_on_the_number_of_parts(exact: None, kind: type[Method], parts: int) -> None:
    options = {Gate: GateOptions(), Headed: Headed.Options(0.0)}.get(kind) or kind.Options()
    torch.manual_seed(3)
    method = kind(options)
    whole, wanted = gradients(method, 1, torch.float64)
    method.zero_grad()
    cut, found = gradients(method, parts, torch.float64)
    assert torch.allclose(whole.total, cut.total, rtol=0, atol=1e-9)
    assert torch.allclose(whole.per_pair, cut.per_pair, rtol=0, atol=1e-9)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        assert gradient is not None and torch.allclose(gradient, found[name], rtol=0, atol=1e-9), name


def test_gradients_agree_in_single_precision() -> None:
    _, wanted = gradients(Gate(GateOptions()), 1, torch.float32)
    _, found = gradients(Gate(GateOptions()), 4, torch.float32)
    assert all(torch.allclose(wanted[name], found[name], rtol=1e-4, atol=1e-5) for name in wanted)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_is_computed_outside_autocast_however_the_batch_is_cut(parts: int) -> None:
    """Or what a method looks up beside the pairwise losses (FFF's thresholds) would be rounded, and they would not."""
    seen: list[bool] = []

    class Watching(Gate):
        def loss(self, *given: Any) -> Loss:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().loss(*given)

    trainee = Trainee(create("truepair-test"), Watching(GateOptions()))
    forward_backward(trainee, *batch(), micro_batches=parts, precision=torch.autocast("cpu", torch.bfloat16))
    assert seen == [False]


def test_dropout_falls_on_the_same_units_in_both_passes(exact: None) -> None:
    """The loss's gradient is taken at the first pass's features: with other units dropped it would be another's."""
    torch.manual_seed(3)
    method = Headed(Headed.Options(0.5))
    seen: list[Tensor] = []
    method.dropout.register_forward_hook(lambda module, given, out: seen.append(out.detach().clone()))
    _, first = gradients(method, 3, torch.float64)
    assert len(seen) == 6 and all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(seen[0] == 0, seen[1][: len(seen[0])] == 0)
    first = {name: gradient.clone() for name, gradient in first.items()}
    masks = torch.cat(seen[:3]) != 0
    method.dropout = _Masked(masks)
    method.zero_grad()
    _, wanted = gradients(method, 1, torch.float64)
    assert all(torch.allclose(first[name], wanted[name], rtol=0, atol=1e-9) for name in wanted)


class _Masked(nn.Module):
    """Dropout of given units."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept * 2


def test_the_random_state_after_a_batch_is_that_of_one_pass() -> None:
    states = []
    for parts in (1, 5):
        gradients(Headed(Headed.Options(0.5)), parts, torch.float32)
        states.append(torch.rand(3))
    assert torch.equal(*states)


def test_running_statistics_of_batch_norms_see_every_image_once() -> None:
    def norm_after(parts: int) -> nn.BatchNorm2d:
        torch.manual_seed(0)
        model = create("truepair-test")
        norm = nn.BatchNorm2d(3, momentum=None)  # cumulative: the mean of all batches it counted
        model.clip.visual.conv1 = nn.Sequential(norm, model.clip.visual.conv1)
        forward_backward(Trainee(model, Gate(GateOptions())), *batch(), micro_batches=parts, precision=nullcontext())
        return norm

    whole, cut = norm_after(1), norm_after(5)
    assert whole.num_batches_tracked == 1 and cut.num_batches_tracked == 5
    assert torch.allclose(whole.running_mean, cut.running_mean, atol=1e-5)
    assert cut.track_running_stats
