"""Frozen encoders by name: what timm and transformers themselves would give, from files in their real formats."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from truepair.errors import UserError
from truepair.models import create, save_local_dir
from truepair.models.encoders import ImageEncoder, TextEncoder, open_encoder, open_timm
from truepair.pairs.image import decode_centre

TINY = "test_efficientnet"  # timm's own model for tests
TEXTS = ["a red circle", "two green squares above a line", "a"]


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=7).eval()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 211, 3), np.uint8))


def as_timm_sees_it(backbone: nn.Module) -> torch.Tensor:
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=backbone))
    with torch.inference_mode():
        return normalize(backbone.forward_head(backbone.forward_features(transform(picture())[None]), pre_logits=True))


def as_we_see_it(encoder: ImageEncoder, tmp_path: Path) -> torch.Tensor:
    picture().save(tmp_path / "picture.png")
    pixels = decode_centre((tmp_path / "picture.png").read_bytes(), encoder.image_size, squash=encoder.squash)
    with torch.inference_mode():
        return encoder.encode_image(torch.tensor(pixels).permute(2, 0, 1)[None])


@pytest.mark.parametrize("form", ["safetensors", "pth", "folder"])
def test_a_timm_model_gives_the_features_timm_gives(form: str, backbone: nn.Module, tmp_path: Path) -> None:
    name = str(tmp_path / "folder")
    if form == "safetensors":
        save_file(backbone.state_dict(), tmp_path / "w.safetensors")
        name = f"{TINY}:{tmp_path / 'w.safetensors'}"
    elif form == "pth":
        torch.save({"state_dict": backbone.state_dict(), "epoch": 3}, tmp_path / "w.pth")
        name = f"{TINY}:{tmp_path / 'w.pth'}"
    else:
        save_for_hf(backbone, name)
    encoder = open_encoder(f"timm:{name}")
    assert isinstance(encoder, ImageEncoder) and not isinstance(encoder, TextEncoder)
    assert not encoder.training
    torch.testing.assert_close(as_we_see_it(encoder, tmp_path), as_timm_sees_it(backbone), atol=2e-4, rtol=0)


@pytest.mark.parametrize("model", ["test_vit", "test_convnext"])
def test_checkpoints_with_a_classifier_of_another_name_load_too(model: str, tmp_path: Path) -> None:
    whole = timm.create_model(model, num_classes=5).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = open_timm(f"{model}:{tmp_path / 'w.pth'}")
    torch.testing.assert_close(as_we_see_it(encoder, tmp_path), as_timm_sees_it(whole), atol=2e-4, rtol=0)


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_checkpoint_that_is_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Harm()}))
    with pytest.raises(UserError):
        open_encoder(f"timm:{TINY}:{tmp_path / 'w.pth'}")


def test_what_is_no_timm_model_is_one_clear_line(backbone: nn.Module, tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / "empty").mkdir()
    lines = {
        f"timm:{TINY}:{tmp_path / 'absent.pth'}": "no checkpoint",
        f"timm:{TINY}:{tmp_path / 'other.pth'}": "does not fit the architecture: it lacks",
        f"timm:{TINY}:{tmp_path / 'cut.safetensors'}": "cut.safetensors",
        f"timm:{tmp_path / 'empty'}": "cannot be loaded",
        "timm:no_such_model": "cannot be loaded",
    }
    for name, words in lines.items():
        with pytest.raises(UserError, match=words) as error:
            open_encoder(name)
        assert "\n" not in str(error.value)


def test_two_towers_encode_both_and_need_weights(tmp_path: Path) -> None:
    model = create("kind-plain")
    save_local_dir(model, tmp_path / "towers")
    encoder = open_encoder(f"local-dir:{tmp_path / 'towers'}")
    assert isinstance(encoder, ImageEncoder) and isinstance(encoder, TextEncoder)
    with pytest.raises(UserError, match="would be random"):
        open_encoder("open_clip:kind-plain")


# -- sentence-transformers -------------------------------------------------------------------------------------------


def write_folder(folder: Path, pooling: dict[str, object], nested: bool = False) -> Path:
    """A tiny random BERT as sentence-transformers saves one, its tokenizer trained on the spot."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator(TEXTS * 4, tokenizers.trainers.WordPieceTrainer(special_tokens=specials, vocab_size=120))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    path = folder / "0_Transformer" if nested else folder
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, **names)
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=120, max_position_embeddings=32, **size)
    transformers.BertModel(config).save_pretrained(path)
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    kinds = [("0_Transformer" if nested else "", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | pooling))
    return folder


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


def by_hand(folder: Path, pooling: str) -> torch.Tensor:
    """One text at a time, nothing padded: what the paper of the pooling says."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=8)).last_hidden_state[0]
        rows.append(hidden[0] if pooling == "cls" else hidden.mean(0))
    return normalize(torch.stack(rows), dim=1)


@pytest.mark.parametrize(("pooling", "config"), [("mean", MEAN), ("cls", CLS), ("cls", {"pooling_mode": "cls"})])
def test_a_sentence_encoder_gives_what_its_parts_give(pooling: str, config: dict[str, object], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", config)
    encoder = open_encoder(f"sentence-transformers:{folder}")
    assert isinstance(encoder, TextEncoder) and not isinstance(encoder, ImageEncoder)
    with torch.inference_mode():
        features = encoder.encode_text(encoder.tokenize(TEXTS))
        torch.testing.assert_close(features, by_hand(folder, pooling), atol=1e-6, rtol=0)


def test_the_older_layout_with_the_transformer_in_a_folder_of_its_own_loads(tmp_path: Path) -> None:
    flat = open_encoder(f"sentence-transformers:{write_folder(tmp_path / 'flat', MEAN)}")
    nested = open_encoder(f"sentence-transformers:{write_folder(tmp_path / 'nested', MEAN, nested=True)}")
    assert isinstance(flat, TextEncoder) and isinstance(nested, TextEncoder)
    with torch.inference_mode():
        same = cosine_similarity(flat.encode_text(flat.tokenize(TEXTS)), nested.encode_text(nested.tokenize(TEXTS)))
    torch.testing.assert_close(same, torch.ones(3))


def test_sentence_folders_that_cannot_be_used_are_one_clear_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", MEAN)
    modules = (folder / "modules.json").read_text()
    name = f"sentence-transformers:{folder}"

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            open_encoder(name)
        assert "\n" not in str(error.value)

    (folder / "modules.json").write_text(modules.replace("models.Normalize", "models.Dense"))
    refused("modules that cannot be used here: Dense")
    (folder / "modules.json").write_text(modules.replace("1_Pooling", "../1_Pooling"))
    refused("outside the folder")
    (folder / "modules.json").write_text("{")
    refused("cannot be read")
    (folder / "modules.json").write_text("3")
    refused("not a list of modules")
    (folder / "modules.json").write_text(modules)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    refused("pooling max_tokens; known are mean, cls")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
    (folder / "model.safetensors").unlink()
    refused("cannot be loaded")
    (folder / "modules.json").unlink()
    refused("no modules.json")


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'truepair\[hf\]'"):
        open_encoder(f"sentence-transformers:{tmp_path}")
