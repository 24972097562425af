"""The twin is an exponential average of the student, asked without gradient and always in the same state of mind."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from truepair.errors import UserError
from truepair.models import DualEncoder, Twin, create, image_tokens, text_tokens
from truepair.models.tokens import encode_image_with_tokens, encode_text_with_tokens

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
NORMED = "truepair-tiny"  # its image tower has batch norms
DROPPING = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 16,
        "head_width": 8,
        "patch_size": 8,
        "patch_dropout": 0.5,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _dropping(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("towers")
    (folder / "tower-dropping.json").write_text(json.dumps(DROPPING))
    open_clip.add_model_config(folder)


def student(name: str = "truepair-test") -> DualEncoder:
    torch.manual_seed(0)
    return create(name).train()


@torch.no_grad()
def moved(model: DualEncoder, seed: int) -> None:
    """As after a step of training."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=draw)


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


TOKENS = create("truepair-test").tokenize(["a dog", "two cats", "", "word " * 20])


@given(momentum=st.sampled_from([0.0, 0.3, 0.9, 0.995]), ramp=st.booleans(), steps=st.integers(1, 12))
@settings(deadline=None, max_examples=6)
def test_every_parameter_is_the_average_the_formula_says(momentum: float, ramp: bool, steps: int) -> None:
    model = student()
    twin = Twin(model, momentum, ramp)
    wanted = {name: p.detach().double() for name, p in model.named_parameters()}
    for t in range(steps):
        moved(model, t)
        twin.follow(model)
        m = min(momentum, (1 + t) / (10 + t)) if ramp else momentum
        wanted = {name: m * wanted[name] + (1 - m) * p.detach().double() for name, p in model.named_parameters()}
    assert twin.steps == steps
    found = dict(twin.towers.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name].double(), wanted[name], atol=1e-6) for name in wanted)


def test_with_the_ramp_a_twin_forgets_the_start_within_some_steps_and_has_its_momentum_in_the_end() -> None:
    model = student()
    shares = []
    for ramp in (True, False):
        twin = Twin(model, ramp=ramp)
        torch.nn.init.constant_(twin.towers.clip.logit_scale, 1.0)
        torch.nn.init.constant_(model.clip.logit_scale, 0.0)
        for _ in range(20):
            twin.follow(model)
        shares.append(twin.towers.clip.logit_scale.item())
    assert shares[0] < 1e-4 and shares[1] == pytest.approx(0.995**20)
    twin.ramp, twin.steps = True, 10_000
    twin.follow(model)
    assert twin.towers.clip.logit_scale.item() == pytest.approx(0.995**21)


@torch.no_grad()
def test_a_new_twin_thinks_as_the_student_and_a_followed_one_lags_behind() -> None:
    model = student()
    twin = Twin(model)
    pairs = [
        (twin.encode_image, model.encode_image, images()),
        (twin.encode_text, model.encode_text, TOKENS),
        (twin.image_tokens, lambda x: image_tokens(model, x), images()),
        (twin.text_tokens, lambda x: text_tokens(model, x), TOKENS),
    ]
    for mine, theirs, x in pairs:
        torch.testing.assert_close(mine(x), theirs(x), **CLOSE)
    moved(model, 0)
    before = [mine(x) for mine, _, x in pairs]
    twin.follow(model)
    for old, (mine, theirs, x) in zip(before, pairs, strict=True):
        assert (mine(x) - theirs(x)).norm() < (old - theirs(x)).norm()


def test_nothing_of_it_is_trained_and_nothing_it_says_has_a_graph() -> None:
    model = student()
    twin = Twin(model)
    assert not any(p.requires_grad for p in twin.parameters()) and all(p.requires_grad for p in model.parameters())
    for said in (twin.encode_image(images()), twin.encode_text(TOKENS), twin.image_tokens(images())):
        assert not said.requires_grad
    twin.follow(model)
    assert not any(p.requires_grad for p in twin.parameters())
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


def test_it_drops_nothing_while_the_student_trains() -> None:
    model = student("tower-dropping")
    around = nn.ModuleList([Twin(model)]).train()
    twin = around[0]
    assert torch.equal(twin.encode_image(images()), twin.encode_image(images()))
    assert not torch.equal(model.encode_image(images()), model.encode_image(images()))
    model.eval()
    torch.testing.assert_close(twin.encode_image(images()), model.encode_image(images()), **CLOSE)


@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_batch_norms_use_the_statistics_of_the_images_from_the_first_step(mode: bool) -> None:
    model = student(NORMED)
    twin = Twin(model).train(mode)
    said = twin.encode_image(images())
    torch.testing.assert_close(said, model.encode_image(images()), **CLOSE)  # the student is in training mode
    model.eval()
    assert not torch.allclose(said, model.encode_image(images()), atol=0.01)


def test_asking_it_changes_none_of_its_state() -> None:
    twin = Twin(student(NORMED))
    before = {name: tensor.clone() for name, tensor in twin.towers.state_dict().items()}
    said = twin.encode_image(images())
    twin.encode_image(images(seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.towers.state_dict().items())
    assert torch.equal(twin.encode_image(images()), said)


def test_its_towers_carry_the_students_running_statistics() -> None:
    model = student(NORMED)
    twin = Twin(model)
    model.encode_image(images())
    twin.follow(model)
    theirs, mine = dict(model.named_buffers()), dict(twin.towers.named_buffers())
    assert any("running_mean" in name for name in theirs)
    assert all(torch.equal(tensor, mine[name]) for name, tensor in theirs.items())


def test_a_saved_twin_goes_on_as_the_one_that_was_not_saved(tmp_path: Path) -> None:
    model = student()
    twin = Twin(model, 0.9)
    for seed in range(3):
        moved(model, seed)
        twin.follow(model)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    torch.manual_seed(1)
    loaded = Twin(create("truepair-test"), 0.9)
    loaded.load_state_dict(torch.load(tmp_path / "twin.pt", weights_only=True))
    assert loaded.steps == 3
    moved(model, 3)
    for one in (twin, loaded):
        one.follow(model)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(twin.encode_text(TOKENS), loaded.encode_text(TOKENS))


def test_it_moves_with_the_module_it_is_in() -> None:
    model = student()
    twin = Twin(model)
    nn.ModuleList([model, twin]).to(torch.float64)
    twin.follow(model)
    assert all(tensor.dtype == torch.float64 for tensor in twin.towers.state_dict().values())
    assert twin.towers.tokenizer is model.tokenizer


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_momentum_that_makes_no_sense_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match=f"momentum is {momentum}; it must be at least 0 and less than 1"):
        Twin(student(), momentum)


def heads() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_heads_follow_with_the_towers_by_the_same_average() -> None:
    model, mine = student(), heads()
    twin = Twin(model, 0.9, ramp=False, heads=mine)
    weight, scale = mine[0].weight.detach().double(), model.clip.logit_scale.detach().double()
    assert twin.heads is not None and not any(p.requires_grad for p in twin.heads.parameters())
    for t in range(3):
        moved(model, t)
        with torch.no_grad():
            mine[0].weight.mul_(1.5)
            mine[1].running_mean.add_(1)
        twin.follow(model, mine)
        weight = 0.9 * weight + 0.1 * mine[0].weight.detach().double()
        scale = 0.9 * scale + 0.1 * model.clip.logit_scale.detach().double()
    torch.testing.assert_close(twin.heads[0].weight.double(), weight, **CLOSE)
    torch.testing.assert_close(twin.towers.clip.logit_scale.double(), scale, **CLOSE)
    assert torch.equal(twin.heads[1].running_mean, mine[1].running_mean)
    assert mine[0].weight.requires_grad, "the student's stay trained"
    loaded = Twin(model, 0.9, ramp=False, heads=heads())
    loaded.load_state_dict(twin.state_dict())
    assert torch.equal(loaded.heads[0].weight, twin.heads[0].weight)


def test_heads_that_are_forgotten_or_unknown_are_a_mistake() -> None:
    model, mine = student(), heads()
    for twin, theirs in ((Twin(model, heads=mine), None), (Twin(model), mine)):
        with pytest.raises(ValueError, match="follows heads if it was built with some"):
            twin.follow(model, theirs)
        assert twin.steps == 0


def test_a_twin_without_heads_is_saved_as_ever() -> None:
    assert {name.split(".")[0] for name in Twin(student()).state_dict()} == {"towers", "_extra_state"}


def test_it_gives_features_and_tokens_in_one_pass_without_graph() -> None:
    model = student().eval()
    twin = Twin(model)
    found = *twin.encode_image_with_tokens(images()), *twin.encode_text_with_tokens(TOKENS)
    wanted = *encode_image_with_tokens(model, images()), *encode_text_with_tokens(model, TOKENS)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), **CLOSE)
        assert not mine.requires_grad
