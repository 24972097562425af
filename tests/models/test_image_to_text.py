"""Captioners are transformers' own models; their samples belong to rows; what does not fit is said in one line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from truepair.errors import UserError
from truepair.models.image_to_text import Captioner, Decoding, RowSampler, open_captioner

KINDS = ["blip2", "encoder-decoder"]
ROWS = np.array([3, 17, 40_000_000_000, 5])


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30 + i, 50, 3), np.uint8)) for i in range(4)]


@pytest.fixture(scope="module", params=KINDS)
def captioner(request: pytest.FixtureRequest, captioner_folders: dict[str, Path]) -> Captioner:
    return open_captioner(f"hf:{captioner_folders[request.param]}")


@pytest.mark.parametrize("decoding", [Decoding("beam", n=2, beams=3), Decoding("greedy")])
def test_beams_and_greedy_captions_are_those_transformers_gives(
    captioner: Captioner, images: list[Image.Image], decoding: Decoding
) -> None:
    folder = captioner.name.removeprefix("hf:")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    beams = decoding.beams if decoding.method == "beam" else 1
    pixels = captioner.preparer(images)["pixel_values"]
    how = {"num_beams": beams, "num_return_sequences": decoding.n, "min_new_tokens": 5, "max_new_tokens": 30}
    wanted = AutoTokenizer.from_pretrained(folder).batch_decode(
        model.generate(pixel_values=pixels, do_sample=False, **how), skip_special_tokens=True
    )
    made = captioner.generate({"pixel_values": pixels}, ROWS, decoding, 0)
    of_image = [wanted[i : i + decoding.n] for i in range(0, len(wanted), decoding.n)]
    assert made == [[text for text in texts if text] for texts in of_image] and any(made)


def test_sampled_captions_are_clean_distinct_and_as_long_as_wanted(
    captioner: Captioner, images: list[Image.Image]
) -> None:
    made = captioner.generate(captioner.preparer(images), ROWS, Decoding(n=4, min_tokens=3, max_tokens=4), 0)
    assert len(made) == 4 and all(1 <= len(texts) <= 4 and len(set(texts)) == len(texts) for texts in made)
    for text in (text for texts in made for text in texts):
        assert 1 <= len(text.split()) <= 4 and text == " ".join(text.split()) and "<" not in text


def test_a_rows_samples_are_its_own_whatever_the_batch(captioner: Captioner, images: list[Image.Image]) -> None:
    decoding = Decoding(n=2)
    together = captioner.generate(captioner.preparer(images), ROWS, decoding, 0)
    torch.manual_seed(99)
    turned = captioner.generate(captioner.preparer(images[:0:-1]), ROWS[:0:-1], decoding, 0)
    assert turned == together[:0:-1]
    assert captioner.generate(captioner.preparer(images), ROWS, decoding, 1) != together
    assert captioner.generate(captioner.preparer(images), ROWS + 1, decoding, 0) != together


def test_the_sampler_draws_the_nucleus_with_its_probabilities() -> None:
    p = [0.4, 0.05, 0.3, 0.2, 0.05]
    temperature, rows = 2.0, 20_000
    scores = temperature * torch.tensor(p).log().expand(rows, -1)
    sampler = RowSampler(np.arange(rows), Decoding(top_p=0.85, temperature=temperature), 0)
    for _ in range(2):  # the second step draws anew
        drawn = sampler(torch.zeros(rows, 1), scores)
        assert (drawn.isfinite().sum(dim=1) == 1).all()
        share = torch.bincount(drawn.argmax(dim=1), minlength=5) / rows
        nucleus = torch.tensor([0.4, 0, 0.3, 0.2, 0]) / 0.9  # 0.7 would be too little
        assert (share - nucleus).abs().max() < 0.018  # 5 standard deviations
        assert not share[1] and not share[4]
    first, second = (sampler(torch.zeros(rows, 1), scores).argmax(dim=1) for _ in range(2))
    assert 0.3 < (first == second).float().mean() < 0.4  # Σ p² = 0.358


def test_with_a_tiny_nucleus_sampling_is_greedy(captioner: Captioner, images: list[Image.Image]) -> None:
    inputs = captioner.preparer(images)
    nucleus = captioner.generate(inputs, ROWS, Decoding(top_p=1e-6), 0)
    assert nucleus == captioner.generate(inputs, ROWS, Decoding("greedy"), 0)


def test_a_prompt_is_gone_on_from_and_not_part_of_the_caption(
    captioner_folders: dict[str, Path], images: list[Image.Image]
) -> None:
    plain = open_captioner(f"hf:{captioner_folders['blip2']}")
    asked = open_captioner(f"hf:{captioner_folders['blip2']}", prompt="small red")
    inputs = asked.preparer(images)
    tokenizer = AutoTokenizer.from_pretrained(captioner_folders["blip2"])
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in inputs["input_ids"]] == ["small red"] * 4
    greedy = Decoding("greedy", max_tokens=6)
    captions = asked.generate(inputs, ROWS, greedy, 0)
    assert captions != plain.generate(plain.preparer(images), ROWS, greedy, 0)
    assert all(len(texts[0].split()) <= 6 and not texts[0].startswith("small red") for texts in captions)
    with pytest.raises(UserError, match="reads no text"):
        open_captioner(f"hf:{captioner_folders['encoder-decoder']}", prompt="a photo of")


def test_logits_that_are_no_numbers_are_an_error(captioner_folders: dict[str, Path], images: list[Image.Image]) -> None:
    broken = open_captioner(f"hf:{captioner_folders['blip2']}")
    inputs = broken.preparer(images) | {"pixel_values": torch.full((4, 3, 32, 32), torch.nan)}
    with pytest.raises(UserError, match="--precision fp32"):
        broken.generate(inputs, ROWS, Decoding(), 0)


def test_inputs_that_the_model_refuses_are_an_error_in_one_line(
    captioner_folders: dict[str, Path], images: list[Image.Image]
) -> None:
    captioner = open_captioner(f"hf:{captioner_folders['blip2']}")
    inputs = captioner.preparer(images) | {"strange": torch.zeros(4)}
    with pytest.raises(UserError, match="cannot go on from images") as error:
        captioner.generate(inputs, ROWS, Decoding(), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 0}, "--n 0"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"min_tokens": 9, "max_tokens": 8}, "--min-tokens 9"),
        ({"method": "greedy", "n": 2}, "--decoding greedy gives at most 1"),
        ({"method": "beam", "n": 6}, "at most 5"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Decoding(**changes)  # type: ignore[arg-type]


def test_models_that_are_not_there_or_do_not_fit_are_errors_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text-only").mkdir()
    (tmp_path / "text-only" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    for name in ("open_clip:ViT-B-32", f"hf:{tmp_path}/absent", f"hf:{tmp_path}/empty", f"hf:{tmp_path}/text-only"):
        with pytest.raises(UserError, match="captioner") as error:
            open_captioner(name)
        assert "\n" not in str(error.value)


def test_pickled_weights_and_a_models_own_code_are_never_run(
    captioner_folders: dict[str, Path], tmp_path: Path
) -> None:
    pickled, coded = tmp_path / "pickled", tmp_path / "coded"
    shutil.copytree(captioner_folders["blip2"], pickled)
    model = AutoModelForImageTextToText.from_pretrained(pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    shutil.copytree(captioner_folders["blip2"], coded)
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": dict.fromkeys(["AutoConfig", "AutoModelForImageTextToText"], "evil.E")}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for folder in (pickled, coded):
        with pytest.raises(UserError, match="cannot be loaded"):
            open_captioner(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'truepair\[hf\]'"):
        open_captioner("hf:any")
