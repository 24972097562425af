"""A matcher says what its parts say, leaves a run as it was, and is opened from a run's newest checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_matchers import live_matcher, save_run
from torch import Tensor

from truepair.errors import UserError
from truepair.models import matcher as matcher_module
from truepair.models.dual import create, newest_checkpoint
from truepair.models.fusion import Fusion
from truepair.models.matcher import DamagedFusion, Matcher, find_matcher, open_fusion, open_matcher
from truepair.models.tokens import attended, encode_image_with_tokens, encode_text_with_tokens

TEXTS = ["a red square", "", "a blue star beside a small yellow cross!"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return live_matcher()


@pytest.fixture(scope="module")
def run(matcher: Matcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", matcher.towers, matcher.fusion)


def asked(matcher: Matcher, images: Tensor, texts: list[str] = TEXTS) -> Tensor:
    text, mask = matcher.read(matcher.towers.tokenize(texts))
    return matcher.logits(text, mask, matcher.see(images))


def test_its_logits_are_those_of_the_parts_in_evaluation_state(matcher: Matcher, images: Tensor) -> None:
    tokens = matcher.towers.tokenize(TEXTS)
    found = asked(matcher, images)
    matcher.model.eval()
    with torch.no_grad():
        cells = encode_image_with_tokens(matcher.towers, images, prefix=True)[1]
        hidden = encode_text_with_tokens(matcher.towers, tokens)[1]
        wanted = matcher.fusion.match(matcher.fusion(hidden, attended(matcher.towers, tokens), cells))
    matcher.model.train()
    torch.testing.assert_close(found, wanted)
    assert found.shape == (3, 2) and found.dtype == torch.float32 and not found.requires_grad


def test_probability_is_the_second_class_of_a_softmax_and_log_odds_order_alike(
    matcher: Matcher, images: Tensor
) -> None:
    text, mask = matcher.read(matcher.towers.tokenize(TEXTS))
    cells = matcher.see(images)
    wanted = matcher.logits(text, mask, cells).softmax(dim=1)[:, 1]
    torch.testing.assert_close(matcher.probability(text, mask, cells), wanted)
    torch.testing.assert_close(matcher.log_odds(text, mask, cells), torch.logit(wanted.double()).float())


def test_features_that_come_with_the_tokens_are_the_towers_own(matcher: Matcher, images: Tensor) -> None:
    features, cells = matcher.see_both(images)
    matcher.towers.eval()
    torch.testing.assert_close(features, matcher.towers.encode_image(images).detach())
    matcher.towers.train()
    assert torch.equal(cells, matcher.see(images))


def test_modules_randomness_and_gradients_of_a_run_are_left_as_they_were(images: Tensor) -> None:
    matcher = live_matcher()
    matcher.towers.clip.visual.eval()  # a frozen part stays what it is
    modes = {name: part.training for name, part in matcher.model.named_modules()}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    asked(matcher, images)
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    assert {name: part.training for name, part in matcher.model.named_modules()} == modes
    matcher.towers.encode_image(images).sum().backward()


def test_half_precision_says_nearly_the_same(matcher: Matcher, images: Tensor) -> None:
    narrow = Matcher(matcher.towers, matcher.fusion, precision="bf16")
    torch.testing.assert_close(asked(narrow, images), asked(matcher, images), atol=0.3, rtol=0.05)
    assert (narrow.precision, matcher.precision) == ("bf16", "fp32")


def test_a_run_is_opened_with_the_weights_of_its_newest_checkpoint(
    matcher: Matcher, run: Path, images: Tensor, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    save_run(tmp_path / "run", matcher.towers, live_matcher(seed=5).fusion, step=8)
    opened = open_matcher(tmp_path / "run")
    assert not any(part.training for part in opened.model.modules()) and opened.name == str(tmp_path / "run")
    assert torch.equal(asked(opened, images), asked(matcher, images))
    kept = open_fusion(tmp_path / "run").state_dict()
    assert all(torch.equal(kept[name], x) for name, x in matcher.fusion.named_parameters())


def test_a_model_without_a_fusion_encoder_has_no_matcher(matcher: Matcher, tmp_path: Path) -> None:
    plain = save_run(tmp_path / "plain", matcher.towers, None)
    blind = save_run(tmp_path / "blind", matcher.towers, Fusion.build(matcher.towers, itm=False))
    for model in (plain, blind, "open_clip:truepair-test"):
        assert find_matcher(model) is None
        with pytest.raises(UserError, match="has no fusion encoder with ITM; train one: truepair train --method never"):
            open_matcher(model)
    assert open_fusion(blind).itm is None
    with pytest.raises(UserError, match=r"run .*plain has no fusion encoder; train one"):
        open_fusion(plain)
    with pytest.raises(UserError, match="is no run"):
        open_fusion(tmp_path)


def test_a_run_of_which_only_the_towers_were_kept_has_no_matcher(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    next((tmp_path / "run").glob("checkpoints/*/state.pt")).unlink()
    assert find_matcher(tmp_path / "run") is None
    with pytest.raises(UserError, match=r"it would be in .*state\.pt, which is not there"):
        open_matcher(tmp_path / "run")


def test_what_stands_beside_the_towers_is_damaged_and_not_absent(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    next((tmp_path / "run").glob("checkpoints/*/state.pt")).write_bytes(b"PK" + bytes(400))
    with pytest.raises(DamagedFusion, match=r"state\.pt cannot be read"):
        find_matcher(tmp_path / "run")


def test_a_checkpoint_of_a_run_is_a_matcher_as_the_run_is(run: Path, images: Tensor) -> None:
    saved, _ = newest_checkpoint(run)
    found = find_matcher(f"local-dir:{saved}")
    assert found is not None and torch.equal(asked(found, images), asked(open_matcher(run), images))


def test_a_fusion_encoder_can_be_that_of_any_checkpoint(matcher: Matcher, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = live_matcher(seed=5).fusion
    save_run(tmp_path / "run", matcher.towers, other, step=8)
    kept = open_fusion(tmp_path / "run/checkpoints/step-00000008").state_dict()
    assert all(torch.equal(kept[name], x) for name, x in other.named_parameters())
    (tmp_path / "run/checkpoints/step-00000008/state.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint .*step-00000008 has no fusion encoder; it would be in"):
        open_fusion(tmp_path / "run/checkpoints/step-00000008")
    for elsewhere in (tmp_path, tmp_path / "run/checkpoints"):
        with pytest.raises(UserError, match="is no run"):
            open_fusion(elsewhere)


def test_it_judges_in_float32_unless_told_otherwise_also_where_half_precision_is_usual(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, "precision_of", lambda wanted, _: "bf16" if wanted == "auto" else wanted)
    assert {live_matcher().precision, open_matcher(run).precision} == {"fp32"}


def test_verdicts_that_are_not_finite_are_none(images: Tensor) -> None:
    broken = live_matcher()
    assert broken.fusion.itm is not None
    torch.nn.init.constant_(broken.fusion.itm.bias, torch.inf)
    with pytest.raises(UserError, match="the fusion encoder of the run's own gives numbers that are not finite"):
        asked(broken, images)


def _method(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = next(folder.glob("checkpoints/*/state.pt"))
        state = torch.load(file, weights_only=True)
        torch.save(state | {"method": change(state["method"])}, file)

    return spoil


def _other_towers(folder: Path) -> None:
    save_run(folder, create("truepair-fusion-tiny"), live_matcher().fusion)


TROUBLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no checkpoint": (lambda folder: shutil.rmtree(folder / "checkpoints"), "has no checkpoint yet"),
    "damaged": (
        lambda folder: next(folder.glob("checkpoints/*/state.pt")).write_bytes(b"PK" + bytes(400)),
        r"state\.pt cannot be read",
    ),
    "a number for a state": (_method(lambda _: 3), "is no checkpoint of a run"),
    "a number for a shape": (_method(lambda old: old | {"fusion._extra_state": 3}), "the fusion encoder of .*step-"),
    "a list for a weight": (_method(lambda old: old | {"fusion.norm.weight": [1]}), "the fusion encoder of .*step-"),
    "other towers": (_other_towers, "does not fit its towers: .*have .*numbers, theirs"),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_a_run_that_is_damaged_is_one_clear_line(run: Path, tmp_path: Path, what: str) -> None:
    spoil, said = TROUBLE[what]
    shutil.copytree(run, tmp_path / "run")
    spoil(tmp_path / "run")
    for opener in (open_matcher, find_matcher):
        with pytest.raises(UserError, match=said) as raised:
            opener(tmp_path / "run")
        assert "\n" not in str(raised.value)
