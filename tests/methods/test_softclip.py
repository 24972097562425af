"""SoftCLIP is its two divergences and CLIP's loss, guided by the twin or by feature columns of the table."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.losses import reference
from truepair.methods.base import Features, Inputs, Pairs
from truepair.methods.softclip import Softclip, SoftclipOptions
from truepair.models import create

SCALE = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)


def unit(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=1)


def known(batch: int, epoch: float, **columns: Tensor) -> Pairs:
    return Pairs(torch.arange(batch), torch.zeros(batch), columns, epoch=epoch, epochs=10)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("epoch", [0.25, 5.0])
def test_the_loss_is_the_weighted_sum_of_the_papers_three_terms(symmetric: bool, epoch: float) -> None:
    """Value up to the targets' entropy, which is constant, and gradient exactly; the ramp is over after an epoch."""
    image, text = unit(9, 1).requires_grad_(), unit(9, 2).requires_grad_()
    r, t = unit(9, 3).float(), unit(9, 4).float()
    options = SoftclipOptions(beta=0.4, tau_guide=0.2, soft=0.7, relation=2.0, clip=0.3, symmetric=symmetric)
    found = Softclip(options).loss(Features(image, text, {"r": r, "t": t}), SCALE, None, known(9, epoch))

    ramp = min(epoch, 1.0)
    own = torch.eye(9, dtype=torch.bool)
    total = torch.zeros((), dtype=torch.float64)
    for logits, guide in ((SCALE * image @ text.T, r), (SCALE * text @ image.T, t)):
        guide = guide.double() @ guide.double().T / 0.2
        soft, relation = reference.softened(guide, own, 0.4 * ramp), reference.relation(guide, own)
        others = logits.masked_fill(own, -torch.inf)
        l_soft, l_re = reference.divergence(logits, soft), reference.divergence(others, relation)
        if symmetric:
            l_soft = l_soft + reference.reverse_divergence(logits, soft)
            l_re = l_re + reference.reverse_divergence(others, relation)
        l_clip = reference.cross_entropy(logits, own.double())
        total = total + (0.7 * l_soft + 2.0 * ramp * l_re + 0.3 * l_clip).mean() / 2
    leaves = [image, text, SCALE]
    ours, theirs = torch.autograd.grad(found.total, leaves), torch.autograd.grad(total, leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # the guides are float32
    assert set(found.logs) == {"clip", "soft", "relation"}


def test_the_loss_of_a_pair_for_the_noise_model_is_clips() -> None:
    image, text = unit(6, 1), unit(6, 2)
    found = Softclip(SoftclipOptions()).loss(Features(image, text, {"r": image, "t": text}), SCALE, None, known(6, 3.0))
    logits, own = (SCALE * image @ text.T).detach(), torch.eye(6, dtype=torch.float64)
    wanted = (reference.cross_entropy(logits, own) + reference.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(found.per_pair, wanted)


@pytest.mark.parametrize("twin", ["tokens", "pooled"])
@pytest.mark.parametrize("captions", [1, 3])
def test_the_twin_guides_with_a_set_of_tokens_or_a_vector_a_pair(twin: str, captions: int) -> None:
    model = create("truepair-test")
    method = Softclip(SoftclipOptions(twin=twin))
    method.bind(model, None, None)
    images = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    inputs = Inputs(
        images, model.tokenize(["a red cat", "two", "a blue dog"] * (4 * captions // 3) + ["end"] * (4 * captions % 3))
    )
    observed = method.observe(model, inputs)
    shapes = {name: tuple(value.shape) for name, value in observed.items()}
    if twin == "pooled":
        assert shapes == {"r": (4, 32), "t": (4, 32)}
    else:
        assert shapes == {"r": (4, 16, 32), "t": (4, captions * model.context_length, 32)}
    features = method.embed(model, inputs)
    found = method.loss(Features(features.image, features.text, observed), model.scale, None, known(4, 2.0))
    assert found.total.isfinite()
    found.total.backward()
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize("regions", [False, True])
def test_feature_columns_take_the_twins_place(regions: bool) -> None:
    r, t = unit(5, 3), unit(5, 4)
    method = Softclip(SoftclipOptions(image_features="seen_image", text_features="read_text"))
    assert method.needs.columns == ("seen_image", "read_text")
    method.bind(create("truepair-test"), None, None)
    assert not list(method.parameters())
    seen = r[:, None].half() if regions else r.half()  # one region is the whole image
    image, text = unit(5, 1), unit(5, 2)
    columns = known(5, 3.0, seen_image=seen, read_text=t.half())
    by_column = method.loss(Features(image, text), SCALE, None, columns)
    given = Features(image, text, {"r": r.half().float(), "t": t.half().float()})
    by_twin = Softclip(SoftclipOptions()).loss(given, SCALE, None, known(5, 3.0))
    torch.testing.assert_close(by_column.total, by_twin.total, rtol=1e-6, atol=1e-6)


def test_the_twin_follows_the_student_and_is_kept_with_the_method() -> None:
    model = create("truepair-test")
    method = Softclip(SoftclipOptions(momentum=0.5))
    method.bind(model, None, None)
    before = method.twin.towers.scale.item()
    with torch.no_grad():
        model.clip.logit_scale.add_(1.0)
    method.after_step(model)
    assert before < method.twin.towers.scale.item() < model.scale.item()
    assert any(name.startswith("twin.") for name in method.state_dict())


@pytest.mark.parametrize(("shape", "said"), [((5,), "shape"), ((5, 2, 2, 3), "shape"), ((5, 4), "not finite")])
def test_columns_that_are_no_features_are_refused(shape: tuple[int, ...], said: str) -> None:
    method = Softclip(SoftclipOptions(image_features="seen", text_features="read"))
    seen = torch.ones(shape)
    seen.view(-1)[0] = torch.nan
    features = Features(unit(5, 1), unit(5, 2))
    with pytest.raises(UserError, match=f"'seen'.*{said}"):
        method.loss(features, SCALE, None, known(5, 3.0, seen=seen, read=torch.ones(5, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 1.5},
        {"tau_guide": 0.0},
        {"ramp_epochs": -1.0},
        {"soft": -1.0},
        {"soft": 0.0, "relation": 0.0, "clip": 0.0},
    ],
)
def test_senseless_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="softclip"):
        SoftclipOptions(**wrong)
