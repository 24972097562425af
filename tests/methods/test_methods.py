"""Each method is its paper's loss: open_clip's for CLIP and SigLIP, CLIP's of the believed pairs for gate."""

import dataclasses
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.losses import compile_tiles, reference
from truepair.methods import METHODS, method_class
from truepair.methods.base import Features, Inputs, Loss, Method, Pairs
from truepair.methods.never import Never
from truepair.models import create
from truepair.models.queue import Queue
from truepair.pairs.table import PairTable

CLOSE = {"rtol": 1e-7, "atol": 1e-11}
SCALE = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
BIAS = torch.tensor(-8.0, dtype=torch.float64, requires_grad=True)


def captions_of(name: str) -> int:
    """How many captions an image a method takes, or more."""
    return 1 if name.startswith("never") else 2


def features(batch: int, captions: int = 1, seed: int = 0) -> Features:
    def unit(rows: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return normalize(torch.randn(rows, 8, generator=rng, dtype=torch.float64), dim=1).requires_grad_()

    return Features(unit(batch, 2 * seed), unit(batch * captions, 2 * seed + 1))


def of_cosines(cosines: Tensor) -> Features:
    """Features whose similarities are `cosines`; the gradient of `image` is that of the matrix."""
    return Features(cosines.clone().requires_grad_(), torch.eye(len(cosines), dtype=cosines.dtype))


def loss(method: str, pairs: Features, p_noise: Tensor | None = None, **options: Any) -> Loss:
    """A method's loss, with a twin that thinks as the student does and captions that are all different."""
    kind = METHODS[method]
    batch = len(pairs.image)
    p_noise = torch.zeros(batch) if p_noise is None else p_noise
    ids = torch.arange(batch)
    known = Pairs(ids, p_noise, {}, epoch=2.5, epochs=10, captions=torch.arange(len(pairs.text)), images=ids, seeds=ids)
    image, text = pairs.image.detach(), pairs.text.detach()
    twin = {
        "softclip": {"r": image, "t": text[:batch]},
        "fff": {"x": image, "t": text},
        "nlip": {"nll": text.sum(dim=1)},
    }
    made = kind(kind.Options(**options))
    if isinstance(made, Never):
        made.queue = Queue(0, image.shape[1])
        twin[method] = {"f_m": image, "g_m": text, "f_l": image[:, None], "g_l": text[:, None]}
        for name in ("itm", "itm_image", "itm_text"):
            twin[method] |= {name: image[:, :2], f"{name}_found": ids >= 0}
        twin[method] |= {name: text[:, 0] for name in ("mlm", "mlm_taught", "gaps", "hits")}
    return made.loss(Features(pairs.image, pairs.text, twin.get(method, {})), SCALE, BIAS, known)


def clip_rows(pairs: Features) -> Tensor:
    """CLIP's loss of each pair (B,) in plain matrices, a mean over its captions."""
    image, text = pairs.image, pairs.text
    logits = SCALE * image @ text.T
    own = reference.alone(reference.own_pairs(*logits.shape))
    t2i = reference.cross_entropy(logits.T, own.T / own.T.sum(dim=1, keepdim=True)).view(len(image), -1).mean(dim=1)
    return (reference.cross_entropy(logits, own) + t2i) / 2


def same_with_gradients(ours: Tensor, theirs: Tensor, pairs: Features) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    leaves = [pairs.image, pairs.text, SCALE, BIAS]
    got, wanted = (torch.autograd.grad(v, leaves, allow_unused=True, retain_graph=True) for v in (ours, theirs))
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_clip_is_open_clips_clip_loss(batch: int) -> None:
    pairs = features(batch)
    same_with_gradients(loss("clip", pairs).total, open_clip.loss.ClipLoss()(pairs.image, pairs.text, SCALE), pairs)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_siglip_is_open_clips_siglip_loss_with_its_bias(batch: int) -> None:
    pairs = features(batch)
    theirs = open_clip.loss.SigLipLoss()(pairs.image, pairs.text, SCALE, BIAS)
    same_with_gradients(loss("siglip", pairs).total, theirs, pairs)


def test_siglip_starts_at_the_papers_scale_and_bias() -> None:
    needs = METHODS["siglip"].needs
    model = create("truepair-test", init_scale=needs.init_scale, init_bias=needs.init_bias)
    assert model.scale.item() == pytest.approx(10) and model.bias is not None and model.bias.item() == -10


@given(batch=st.integers(1, 12), captions=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_clip_of_k_captions_is_the_mean_of_the_plain_rows(batch: int, captions: int, seed: int) -> None:
    pairs = features(batch, captions, seed)
    same_with_gradients(loss("clip", pairs).total, clip_rows(pairs).mean(), pairs)


@given(batch=st.integers(1, 12), captions=st.integers(1, 3), power=st.sampled_from([0.5, 1.0, 3.0]))
@settings(deadline=None, max_examples=20)
def test_gate_without_doubt_is_clip(batch: int, captions: int, power: float) -> None:
    pairs = features(batch, captions)
    ours, clip = loss("gate", pairs, power=power), loss("clip", pairs)
    same_with_gradients(ours.total, clip.total, pairs)
    torch.testing.assert_close(ours.per_pair, clip.per_pair)


@given(clean=st.lists(st.booleans(), min_size=1, max_size=12).filter(any), captions=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_gate_that_is_sure_averages_clips_rows_over_the_clean_pairs_only(clean: list[bool], captions: int) -> None:
    pairs = features(len(clean), captions)
    ours = loss("gate", pairs, p_noise=1 - torch.tensor(clean).float())
    same_with_gradients(ours.total, clip_rows(pairs)[torch.tensor(clean)].mean(), pairs)


def test_gate_weights_a_pair_with_the_power_of_its_belief() -> None:
    pairs, p_noise = features(4), torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
    weight = (1 - p_noise) ** 2
    ours = loss("gate", pairs, p_noise, power=2.0)
    same_with_gradients(ours.total, (weight * clip_rows(pairs)).sum() / weight.sum(), pairs)
    assert ours.logs["weight"].item() == pytest.approx(weight.mean().item())


def test_gate_does_not_pull_a_doubted_pair_together_yet_keeps_it_as_a_negative() -> None:
    cosines = features(6).image.detach() @ features(6, seed=5).image.detach().T
    pairs = of_cosines(cosines)
    p_noise = torch.zeros(6)
    p_noise[2] = 1
    (pull,) = torch.autograd.grad(loss("gate", pairs, p_noise).total, pairs.image)
    assert pull[2, 2] == 0
    others = [0, 1, 3, 4, 5]
    assert all(pull[i, i] < 0 for i in others)
    assert all(pull[i, 2] > 0 and pull[2, i] > 0 for i in others)


def test_gate_that_doubts_everything_moves_nothing() -> None:
    pairs = features(5)
    total = loss("gate", pairs, torch.ones(5)).total
    assert total.item() == 0
    assert not torch.autograd.grad(total, pairs.image)[0].any()


@pytest.mark.parametrize(("name", "captions"), [(name, k) for name in METHODS for k in (1, 3)[: captions_of(name)]])
def test_the_loss_of_each_pair_is_one_number_without_gradient_and_untouched_by_doubt(name: str, captions: int) -> None:
    pairs = features(7, captions)
    doubted = torch.linspace(0, 0.9, 7)
    found = loss(name, pairs, doubted)
    assert found.per_pair.shape == (7,) and not found.per_pair.requires_grad and found.total.shape == ()
    torch.testing.assert_close(found.per_pair, loss(name, pairs).per_pair, **CLOSE)
    assert all(value.shape == () and not value.requires_grad for value in found.logs.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_mismatched_pair_has_a_higher_loss_than_the_matched_ones(name: str) -> None:
    cosines = torch.full((6, 6), 0.1, dtype=torch.float64).fill_diagonal_(0.8)
    cosines[4, 4] = 0.0
    per_pair = loss(name, of_cosines(cosines)).per_pair
    assert per_pair.argmax() == 4


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_tells_no_pair_from_another_has_the_chance_loss(name: str) -> None:
    kind = METHODS[name]
    chance = kind(kind.Options()).chance_loss(9, 1)
    blind = Features(torch.ones(9, 8, dtype=torch.float64), torch.ones(9, 8, dtype=torch.float64))
    if chance is not None:
        assert loss(name, blind).total.item() == pytest.approx(chance)
        assert name != "clip" or chance == math.log(9)
        thrice = Features(blind.image, torch.ones(27, 8, dtype=torch.float64))
        assert loss(name, thrice).total.item() == pytest.approx(kind(kind.Options()).chance_loss(9, 3))


@pytest.mark.parametrize("name", METHODS)
def test_compiled_tiles_change_no_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = importlib.import_module("truepair.losses.walk")
    monkeypatch.setitem(walk.TILE, "cpu", (8, 6))
    pairs = features(9)
    plain = loss(name, pairs)
    for function in ("show", "slope_of"):
        monkeypatch.setattr(walk, function, getattr(walk, function))
    torch.compiler.reset()  # of what other tests compiled
    compile_tiles(backend="eager")
    same_with_gradients(loss(name, pairs).total, plain.total, pairs)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_from_its_options_and_says_what_it_is(name: str) -> None:
    kind = method_class(name)
    assert issubclass(kind, Method) and dataclasses.is_dataclass(kind.Options)
    method = kind(kind.Options())
    assert method.options == kind.Options()
    assert kind.__doc__ and "L = " in kind.__doc__
    assert kind.Options.__doc__ and not kind.Options.__doc__.startswith(f"{kind.Options.__name__}(")
    module = inspect.getmodule(kind)
    assert module is not None and module.__doc__ and module.__name__.endswith(f".{name.replace('-', '_')}")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_embeds_images_and_captions_with_gradient(name: str, scenes: Path) -> None:
    method, captions = METHODS[name](METHODS[name].Options()), 2 * captions_of(name)
    table = PairTable.open(scenes / "train")
    model = create("truepair-fusion-test" if method.needs.model else "truepair-test")
    method.bind(model, table, table.captions())
    images = torch.randint(0, 256, (method.needs.views, 2, 3, 32, 32), dtype=torch.uint8)
    tokens = model.tokenize(["a", "b", "c", "d"][:captions])
    inputs = Inputs(images, tokens, seeds=torch.arange(2))
    if method.needs.views > 1:  # of two views one is for the twin
        inputs.observed = method.observe(model, inputs)
    found = method.embed(model, inputs)
    assert found.image.shape == (2, 32) and found.text.shape == (captions, 32)
    assert found.image.requires_grad and found.text.requires_grad


def test_a_method_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match="no method 'clap'; choose one of clip, siglip, gate"):
        method_class("clap")
