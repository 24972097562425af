"""A run's captioner writes what its parts would, scores as open_clip would, and leaves a run as it was."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from run_captioners import CONCEPTS, SHOWN, live_captioner, live_modules, save_run
from torch import Tensor

from truepair.config import RunConfig, to_toml
from truepair.errors import UserError
from truepair.models.image_to_text import Decoding
from truepair.models.likeness import Judge, Pixels
from truepair.models.run_captioner import RunCaptioner, open_run_captioner
from truepair.models.tokens import encode_image_with_tokens
from truepair.pairs.image import decode_centre

ROWS = np.array([3, 17, 40_000_000_000, 5])
SHORT = Decoding(n=2, min_tokens=1, max_tokens=6)
TEXTS = [["a red square", "a star"], [], ["a ring"], ["a red square", "a cross above a circle", "a star"]]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30 + 9 * i, 50, 3), np.uint8)) for i in range(4)]


@pytest.fixture(scope="module")
def captioner() -> RunCaptioner:
    return live_captioner()


@pytest.fixture(scope="module")
def run(captioner: RunCaptioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", captioner)


@pytest.mark.parametrize("decoding", [SHORT, Decoding("beam", n=2, beams=3, max_tokens=8), Decoding("greedy")])
def test_captions_are_those_its_parts_write_for_the_images_tokens_and_nearest_concepts(
    captioner: RunCaptioner, images: list[Image.Image], decoding: Decoding
) -> None:
    inputs = captioner.preparer(images)
    written = captioner.write(inputs, ROWS, decoding, 5)
    captioner.model.eval()
    with torch.no_grad():
        features, tokens = encode_image_with_tokens(captioner.towers, inputs["pixels"])
        order = (features @ captioner.bank.features.T).argsort(dim=1, descending=True)[:, :SHOWN]
        texts = captioner.captioner.generate(tokens, order, ROWS, decoding, 5)
    captioner.model.train()
    assert written.texts == texts == captioner.generate(inputs, ROWS, decoding, 5) and any(texts)
    shown = [[CONCEPTS[i] for i in row] for row in order.tolist()]
    assert written.concepts == shown
    torch.testing.assert_close(written.images, features)


def test_scores_are_the_cosines_open_clip_gives(captioner: RunCaptioner, run: Path, images: list[Image.Image]) -> None:
    folder = f"local-dir:{run / 'checkpoints' / 'step-00000024'}"
    clip, _, transform = open_clip.create_model_and_transforms(folder)
    clip.eval()
    tokenizer = open_clip.get_tokenizer(folder)
    judge = captioner.judge
    scores = judge.cosines(judge.see(captioner.preparer(images)["pixels"]), TEXTS)
    assert [len(row) for row in scores] == [2, 0, 1, 3]
    with torch.no_grad():
        for image, texts, found in zip(images, TEXTS, scores, strict=True):
            if texts:
                seen = clip.encode_image(transform(image)[None], normalize=True)
                wanted = seen @ clip.encode_text(tokenizer(texts), normalize=True).T
                np.testing.assert_allclose(found, wanted[0].numpy(), atol=2e-5)


@pytest.mark.parametrize("squash", [False, True])
def test_pixels_are_those_of_evaluation(images: list[Image.Image], squash: bool) -> None:
    pixels = Pixels(24, squash)(images)["pixels"]
    assert pixels.shape == (4, 3, 24, 24) and pixels.dtype == torch.uint8
    for image, found in zip(images, pixels, strict=True):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert (found.permute(1, 2, 0).numpy() == decode_centre(file.getvalue(), 24, squash=squash)).all()


def test_modules_randomness_and_gradients_of_a_run_are_left_as_they_were(images: list[Image.Image]) -> None:
    model, parts, bank = live_modules()
    model.clip.visual.eval()  # a frozen part stays what it is
    captioner = RunCaptioner(model, parts, bank, SHOWN, precision="bf16")
    modes = {name: part.training for name, part in captioner.model.named_modules()}
    asked = {name: p.requires_grad for name, p in captioner.model.named_parameters()}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    inputs = captioner.preparer(images)
    captioner.write(inputs, ROWS, SHORT, 0)
    captioner.judge.cosines(captioner.judge.see(inputs["pixels"]), TEXTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: part.training for name, part in captioner.model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in captioner.model.named_parameters()} == asked
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model.encode_image(inputs["pixels"]).sum().backward()  # and it can go on learning
    image_tokens = encode_image_with_tokens(model, inputs["pixels"])[1]
    parts(image_tokens, model.tokenize(["a red square"] * 4), bank.nearest(torch.rand(4, 32), 2)[1]).sum().backward()


def test_state_comes_back_after_an_error_too(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = live_captioner()
    monkeypatch.setattr(captioner.captioner, "generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="4 images at once are too many for the device's memory; lower --batch-size"):
        captioner.write(captioner.preparer(images), ROWS, SHORT, 0)
    assert all(part.training for part in captioner.model.modules())


def test_half_precision_says_nearly_the_same(captioner: RunCaptioner, images: list[Image.Image]) -> None:
    inputs = captioner.preparer(images)
    narrow, wide = captioner.judge, Judge(captioner.towers, "bf16")
    exact = narrow.cosines(narrow.see(inputs["pixels"]), TEXTS)
    for row, rough in zip(exact, wide.cosines(wide.see(inputs["pixels"]), TEXTS), strict=True):
        np.testing.assert_allclose(rough, row, atol=0.03)
    assert wide.precision == "bf16" and captioner.precision == "fp32"


def test_without_concepts_or_with_more_than_there_are_captions_are_written_too(images: list[Image.Image]) -> None:
    modules = live_modules()
    for wanted, shown in ((0, 0), (32, len(CONCEPTS))):
        captioner = RunCaptioner(*modules, wanted)
        written = captioner.write(captioner.preparer(images), ROWS, SHORT, 0)
        assert [len(names) for names in written.concepts] == [shown] * 4 and all(written.texts)


def test_a_run_is_opened_with_the_weights_concepts_and_step_of_its_newest_checkpoint(
    captioner: RunCaptioner, run: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "checkpoints" / "step-00000024", tmp_path / "run" / "checkpoints" / "step-00000008")
    opened = open_run_captioner(tmp_path / "run")
    assert (opened.step, opened.concepts_per_image, opened.name) == (24, SHOWN, str(tmp_path / "run"))
    assert not any(part.training for part in opened.model.modules())
    wanted = captioner.write(captioner.preparer(images), ROWS, SHORT, 3)
    found = opened.write(opened.preparer(images), ROWS, SHORT, 3)
    assert (found.texts, found.concepts) == (wanted.texts, wanted.concepts)


def _unfit(folder: Path) -> None:
    file = next(folder.glob("checkpoints/*/state.pt"))
    state = torch.load(file, weights_only=True)
    name = "captioner.project.1.weight"
    state["method"][name] = state["method"][name][:, 1:]
    torch.save(state, file)


def _without_captioner(folder: Path) -> None:
    file = next(folder.glob("checkpoints/*/state.pt"))
    torch.save({"optimizer": {}, "method": {"twin.weight": torch.zeros(2)}}, file)


TROUBLE: dict[str, tuple[Any, str]] = {
    "no run": (shutil.rmtree, "is neither a run .* nor hf:NAME"),
    "no checkpoint": (lambda folder: shutil.rmtree(folder / "checkpoints"), "has no checkpoint yet"),
    "another method": (_without_captioner, "has no captioner; train one: truepair train --method nlip"),
    "damaged": (
        lambda folder: next(folder.glob("checkpoints/*/state.pt")).write_bytes(b"PK" + bytes(400)),
        r"state\.pt cannot be read",
    ),
    "gone": (lambda folder: next(folder.glob("checkpoints/*/state.pt")).unlink(), r"state\.pt cannot be read"),
    "unfit": (_unfit, "the captioner of .*step-00000024 does not fit its towers"),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_what_is_no_run_with_a_captioner_is_said_in_one_line(run: Path, tmp_path: Path, what: str) -> None:
    spoil, said = TROUBLE[what]
    shutil.copytree(run, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=said) as raised:
        open_run_captioner(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_run_that_does_not_say_shows_ten_concepts_of_those_it_has(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text(to_toml(RunConfig(method="nlip")))
    shutil.copytree(run / "checkpoints" / "step-00000024", tmp_path / "run" / "checkpoints" / "step-copy")
    assert open_run_captioner(tmp_path / "run").concepts_per_image == min(10, len(CONCEPTS))


def _extra(part: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    name = f"{part}._extra_state"
    return lambda method: method | {name: method[name] | changes}


def _tensor(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda method: method | {name: value}


def _vocabulary(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], Any]:
    name = "captioner.vocabulary"
    return lambda method: method | {name: change(method[name])}


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {  # what the method's state becomes
    "a number for a state": (lambda _: 3, "is no checkpoint of a run"),
    "a list for a state": (lambda _: [1], "is no checkpoint of a run"),
    "numbers for names": (lambda _: {1: torch.zeros(2)}, "is no checkpoint of a run"),
    "a list for a vocabulary": (_tensor("captioner.vocabulary", [1, 2]), "no list of ids"),
    "no vocabulary": (_tensor("captioner.vocabulary", None), "no list of ids"),
    "ids beyond the tokenizer": (_vocabulary(lambda ids: ids + 49_408), "no list of ids"),
    "negative ids": (_vocabulary(lambda ids: ids - 1_000_000), "no list of ids"),
    "ids twice": (_vocabulary(torch.ones_like), "no list of ids"),
    "fractional ids": (_tensor("captioner.vocabulary", torch.rand(9)), "no list of ids"),
    "one id more": (_tensor("captioner.vocabulary", torch.arange(300)), "size mismatch"),
    "a number for an extra state": (_tensor("captioner._extra_state", 3), "shape, length or concepts"),
    "no shape": (_extra("captioner", shape=None), "shape, length or concepts"),
    "endless layers": (_extra("captioner", shape={"layers": 10**9, "width": 16, "heads": 2}), "shape, length"),
    "endless width": (_extra("captioner", shape={"layers": 1, "width": 10**9, "heads": 2}), "shape, length"),
    "no heads": (_extra("captioner", shape={"layers": 1, "width": 16, "heads": 0}), "shape, length"),
    "heads that do not fit": (_extra("captioner", shape={"layers": 1, "width": 16, "heads": 3}), "cannot have 3 heads"),
    "endless captions": (_extra("captioner", longest=10**9), "shape, length"),
    "other names": (_extra("captioner", concepts=["square", 3]), "shape, length or concepts"),
    "a list for a weight": (_tensor("captioner.decoder.lm_head.weight", [1]), "step-00000024 does not fit its towers"),
    "features of another width": (_tensor("bank.features", torch.zeros(6, 9)), "concepts of 9 numbers, not 32"),
    "features of another count": (_tensor("bank.features", torch.zeros(5, 32)), "no names with a feature each"),
    "a list for features": (_tensor("bank.features", [[1.0]]), "no names with a feature each"),
    "concepts that the captioner has not": (_extra("bank", names=list("abcdef")), "holds other concepts"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_one_clear_line(run: Path, tmp_path: Path, what: str) -> None:
    change, said = HOSTILE[what]
    shutil.copytree(run, tmp_path / "run")
    file = next((tmp_path / "run").glob("checkpoints/*/state.pt"))
    state = torch.load(file, weights_only=True)
    torch.save(state | {"method": change(state["method"])}, file)
    with pytest.raises(UserError, match=said) as raised:
        open_run_captioner(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_state_at_all_is_one_clear_line(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for content in (torch.zeros(3), [1], 3, {"optimizer": {}}):
        torch.save(content, next((tmp_path / "run").glob("checkpoints/*/state.pt")))
        with pytest.raises(UserError, match="no checkpoint of a run") as raised:
            open_run_captioner(tmp_path / "run")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"concepts_per_image": 33}, {"concepts_per_image": "x"}, {"concept_column": 7}])
def test_options_of_a_run_that_make_no_sense_are_one_clear_line(run: Path, tmp_path: Path, options: Any) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text(to_toml(RunConfig(method="nlip", options=options)))
    with pytest.raises(UserError, match=r"run\.toml: concepts_per_image .* make no sense"):
        open_run_captioner(tmp_path / "run")
