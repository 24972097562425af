"""The towers are open_clip's: the same features from raw pixels and short captions, and names that are checked."""

import io
import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from truepair.errors import UserError
from truepair.models import DEFAULT, DualEncoder, create, open_model, save_local_dir
from truepair.pairs.image import decode_centre

TRIMMED, WHOLE = ["plain", "custom", "eos"], ["sigmoid", "bidirectional", "last", "cls", "coca"]
TEXTS = ["a dog", "", "two small red squares above a large green ring", "0 ! 0"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def fresh(name: str, seed: int = 0, **options: float) -> DualEncoder:
    torch.manual_seed(seed)
    return create(name, **options).eval()


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def theirs(name: str, texts: list[str]) -> tuple[torch.nn.Module, Tensor]:
    """The same random model built by open_clip alone, and its own padded tokens."""
    torch.manual_seed(0)
    return open_clip.create_model(name, force_custom_text=True).eval(), open_clip.get_tokenizer(name)(texts)


@pytest.mark.parametrize("kind", TRIMMED + WHOLE)
@torch.no_grad()
def test_captions_as_short_as_they_are_have_the_features_of_padded_ones(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    clip, padded = theirs(f"kind-{kind}", TEXTS)
    wanted = clip.encode_text(padded, normalize=True)
    torch.testing.assert_close(model.encode_text(model.tokenize(TEXTS)), wanted, **CLOSE)
    torch.testing.assert_close(model.encode_text(padded), wanted, **CLOSE)


@pytest.mark.parametrize("length", [8, 16, 24])
@torch.no_grad()
def test_a_caption_has_the_same_features_at_every_length_that_holds_it(length: int) -> None:
    model = fresh("kind-custom")
    tokens = model.tokenizer(["a dog"])
    torch.testing.assert_close(model.encode_text(tokens[:, :length]), model.encode_text(tokens), **CLOSE)


@pytest.mark.parametrize("kind", TRIMMED)
def test_causal_towers_are_given_no_more_than_their_longest_caption(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    assert model.tokenize(["a dog"]).shape == (1, 8)
    assert model.tokenize(TEXTS).shape == (4, 16)
    assert model.tokenize(["word " * 100]).shape == (1, 24)


@pytest.mark.parametrize("kind", WHOLE)
def test_towers_that_look_at_the_padding_are_given_all_of_it(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    assert model.pad_id is None
    assert model.tokenize(["a dog"]).shape == (1, 24)


def test_trimming_leaves_the_gradient_of_the_text_tower_as_it_is() -> None:
    model = fresh("kind-custom")
    parameters = [p for p in model.clip.text.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, 16)

    def gradients(tokens: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((model.encode_text(tokens) @ weights).sum(), parameters)

    texts = ["a dog", "a cat"]
    torch.testing.assert_close(gradients(model.tokenize(texts)), gradients(model.tokenizer(texts)), **CLOSE)


@pytest.mark.parametrize("name", ["truepair-test", DEFAULT, "kind-coca"])
@pytest.mark.parametrize("size", [(50, 40), (32, 80), (48, 48), (7, 9)])
@torch.no_grad()
def test_uint8_pixels_have_the_features_of_open_clips_own_preprocessing(name: str, size: tuple[int, int]) -> None:
    model = fresh(name)
    clip, _ = theirs(name, [])
    data = png(*size)
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**clip.visual.preprocess_cfg), False
    )
    wanted = clip.encode_image(preprocess(Image.open(io.BytesIO(data)))[None], normalize=True)
    pixels = torch.from_numpy(decode_centre(data, model.image_size).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(model.encode_image(pixels), wanted, **CLOSE)


@torch.no_grad()
def test_features_are_float32_unit_rows_also_under_autocast() -> None:
    model = fresh("truepair-test")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        rows = [model.encode_image(images), model.encode_text(model.tokenize(TEXTS[:3]))]
    for features in rows:
        assert features.shape == (3, 32) and features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_a_fresh_model_starts_with_the_scale_and_bias_asked_for() -> None:
    model = fresh("truepair-test", init_scale=np.log(10), init_bias=-10)
    assert model.scale.item() == pytest.approx(10) and model.bias is not None and model.bias.item() == -10
    plain = fresh("truepair-test")
    assert plain.scale.item() == pytest.approx(1 / 0.07) and plain.bias is None


def test_scale_and_bias_pass_their_gradient_on() -> None:
    model = fresh("truepair-test", init_bias=-10)
    assert model.bias is not None
    (model.scale * 3 + model.bias).backward()
    assert model.clip.logit_scale.grad.item() == pytest.approx(3 / 0.07)
    assert model.clip.logit_bias.grad.item() == 1


@pytest.mark.parametrize(("before", "after"), [(9.0, 100.0), (-1.0, 1.0), (2.0, np.exp(2.0))])
def test_the_scale_is_kept_between_1_and_100(before: float, after: float) -> None:
    model = fresh("truepair-test")
    torch.nn.init.constant_(model.clip.logit_scale, before)
    model.clamp_scale()
    assert model.scale.item() == pytest.approx(after)
    model.clamp_scale(2.5, 50.0)
    assert model.scale.item() == pytest.approx(min(max(after, 2.5), 50.0))


@pytest.mark.parametrize("method_has_bias", [False, True])
@torch.no_grad()
def test_a_saved_model_keeps_its_scale_and_bias_whatever_a_method_would_start_with(
    tmp_path: Path, method_has_bias: bool
) -> None:
    model = fresh("truepair-test", init_scale=np.log(10), init_bias=-10)
    model.clip.logit_scale.fill_(2.5)
    model.clip.logit_bias.fill_(-7.5)
    save_local_dir(model, tmp_path / "saved")
    wanted = {"init_scale": 0.0, "init_bias": -1.0} if method_has_bias else {}
    loaded = create(f"local-dir:{tmp_path}/saved", **wanted)
    assert loaded.scale.item() == pytest.approx(np.exp(2.5))
    assert loaded.bias is not None and loaded.bias.item() == -7.5
    for name, tensor in model.clip.state_dict().items():
        assert loaded.clip.state_dict()[name].equal(tensor)


def test_whoever_may_read_a_saved_models_configuration_may_read_its_weights(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_local_dir(fresh("truepair-test"), tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_weights_without_a_bias_gain_the_one_asked_for_and_keep_it_after_saving(tmp_path: Path) -> None:
    save_local_dir(fresh("truepair-test"), tmp_path / "clip")
    gained = create(f"local-dir:{tmp_path}/clip", init_bias=-10)
    assert gained.bias is not None and gained.bias.item() == -10
    save_local_dir(gained, tmp_path / "siglip")
    again = open_model(f"local-dir:{tmp_path}/siglip")
    assert again.bias is not None and again.bias.item() == -10
    from_file = create("truepair-test", pretrained=f"{tmp_path}/clip/open_clip_model.safetensors", init_bias=-10)
    assert from_file.bias is not None and from_file.bias.item() == -10


@torch.no_grad()
def test_weights_of_open_clips_own_clip_class_give_its_features(tmp_path: Path) -> None:
    clip = open_clip.create_model("kind-plain").eval()
    assert type(clip) is open_clip.CLIP
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    model = create("kind-plain", pretrained=str(tmp_path / "weights.pt")).eval()
    tokens = open_clip.get_tokenizer("kind-plain")(TEXTS)
    wanted = clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(model.encode_text(model.tokenize(TEXTS)), wanted, **CLOSE)


def test_a_run_is_opened_at_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    for step, scale in ((100, 1.0), (2_000, 2.0)):
        model = fresh("truepair-test")
        torch.nn.init.constant_(model.clip.logit_scale, scale)
        save_local_dir(model, tmp_path / f"checkpoints/step-{step:08d}")
    save_local_dir(fresh("truepair-test"), tmp_path / "checkpoints/step-old")  # somebody's copy
    opened = open_model(str(tmp_path))
    assert opened.scale.item() == pytest.approx(np.exp(2.0)) and not opened.training


def test_a_model_by_its_open_clip_name_is_ready_for_use() -> None:
    assert not open_model("open_clip:truepair-test").training


def test_the_small_models_are_small_enough_for_a_cpu() -> None:
    for name, most in (("truepair-test", 0.1e6), (DEFAULT, 8e6)):
        model = fresh(name)
        vocabulary = model.clip.text.token_embedding.weight.numel()
        assert sum(p.numel() for p in model.parameters()) - vocabulary < most


def test_towers_can_be_compiled_in_place() -> None:
    model = fresh("truepair-test")
    model.compile_towers()
    assert model.clip.visual._compiled_call_impl is not None and model.clip.text._compiled_call_impl is not None
    assert not any("_orig_mod" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("name", "near"),
    [("truepair-tny", "truepair-tiny"), ("ViT-B32", "ViT-B-32"), ("vit-b-16-siglip", "ViT-B-16-SigLIP"), ("zzz", "")],
)
def test_a_name_that_does_not_exist_is_refused_with_those_near_it(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no model of the name '{name}'.*{near}"):
        create(name)


@pytest.mark.parametrize("pretrained", ["no-such-tag", "no/such/file.pt"])
def test_weights_that_do_not_exist_are_refused_by_name(pretrained: str) -> None:
    with pytest.raises(UserError, match=f"truepair-test.*{pretrained}"):
        create("truepair-test", pretrained=pretrained)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(f"open_clip:truepair-test:{pretrained}")


def saved(folder: Path) -> Path:
    save_local_dir(fresh("truepair-test"), folder)
    return folder


@pytest.mark.parametrize("broken", ["absent", "no weights", "torn weights", "torn config", "odd config", "no config"])
def test_a_directory_that_holds_no_whole_model_is_refused_in_one_line(tmp_path: Path, broken: str) -> None:
    folder = saved(tmp_path / "model")
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    if broken == "absent":
        folder = tmp_path / "elsewhere"
    elif broken == "no weights":
        weights.unlink()
    elif broken == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif broken == "torn config":
        config.write_text(config.read_text()[:40])
    elif broken == "odd config":
        config.write_text(config.read_text().replace('"patch_size"', '"patch_sighs"'))
    else:
        config.unlink()
    for load in (create, open_model):
        with pytest.raises(UserError, match="cannot be loaded") as said:
            load(f"local-dir:{folder}")
        assert "\n" not in str(said.value) and str(folder) in str(said.value)


def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path) -> None:
    weights = saved(tmp_path / "model") / "open_clip_model.safetensors"
    with pytest.raises(UserError, match="cannot be loaded") as said:
        create(DEFAULT, pretrained=str(weights))
    assert "\n" not in str(said.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"logit_scale": Hostile()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot be loaded"):
        create("truepair-test", pretrained=str(tmp_path / "weights.pt"))
    assert not (tmp_path / "touched").exists()


def test_other_weights_for_a_directory_that_brings_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brings its own weights"):
        create(f"local-dir:{saved(tmp_path / 'model')}", pretrained="laion2b")


def test_a_text_tower_that_does_not_know_all_its_tokenizers_words_is_refused_with_both_numbers(tmp_path: Path) -> None:
    for rows, refused in ((49_407, True), (49_408, False), (49_409, False)):
        folder = saved(tmp_path / str(rows))
        config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
        config.write_text(config.read_text().replace('"vocab_size": 49408', f'"vocab_size": {rows}'))
        tensors = safetensors.torch.load_file(weights)
        words = tensors["text.token_embedding.weight"]
        tensors["text.token_embedding.weight"] = torch.cat([words, words])[:rows].clone()
        safetensors.torch.save_file(tensors, weights)
        if refused:
            with pytest.raises(UserError, match="knows 49407 tokens, but its tokenizer gives ids up to 49407"):
                create(f"local-dir:{folder}")
        else:
            assert len(create(f"local-dir:{folder}").clip.text.token_embedding.weight) == rows


@pytest.mark.parametrize(("rows", "refused"), [(6, True), (7, False), (8, False)])
def test_words_added_to_a_tokenizer_of_transformers_need_no_row(rows: int, refused: bool, tmp_path: Path) -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    fast.add_tokens(["<extra>", "<more>"])
    fast.save_pretrained(tmp_path / "words")
    text = {"context_length": 8, "vocab_size": rows, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    named = text | {"hf_tokenizer_name": str(tmp_path / "words")}
    name = f"words-{rows}"
    (tmp_path / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": named}))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    if refused:
        with pytest.raises(UserError, match="knows 6 tokens, but its tokenizer gives ids up to 6;"):
            create(name)
    else:
        assert create(name).tokenize(["a cat"]).max() == 6


def test_what_is_neither_run_nor_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        open_model(str(tmp_path))
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UserError, match="no checkpoint yet"):
        open_model(str(tmp_path))
