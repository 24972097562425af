"""A text tower that fills gaps reads both ways and has a token for a gap; making one changes nothing else."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from truepair.errors import UserError
from truepair.models import DualEncoder, create, save_local_dir
from truepair.models.masked_text import mask_token, reads_both_ways, reserve_mask, word_embedding

TEXTS = ["a dog", "", "two small red squares", "0 !~ 0", "word " * 50]
WORDS = 49408  # of CLIP's tokenizer


def fresh(name: str = "truepair-fusion-test") -> DualEncoder:
    torch.manual_seed(0)
    return create(name).eval()


class Tokens:
    """A tokenizer of transformers, as far as ids go."""

    def __init__(self, size: int, mask: int | None) -> None:
        self.size, self.mask_token_id, self.tokenizer = size, mask, self

    def __len__(self) -> int:
        return self.size


def of_transformers(size: int, mask: int | None, **config: Any) -> DualEncoder:
    """A model with a BERT of 8 tokens, and a tokenizer of `size` tokens."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = fresh("kind-custom")
    bert = transformers.BertConfig(vocab_size=8, **shape, **config)
    model.clip.text = open_clip.hf_model.HFTextEncoder("", 16, bert, pooler_type="mean_pooler", proj_type="linear")
    model.tokenizer, model.pad_id = Tokens(size, mask), None
    return model


def test_towers_without_a_causal_mask_read_both_ways() -> None:
    kinds = ("custom", "eos", "cls", "coca", "bidirectional", "sigmoid")
    assert [reads_both_ways(fresh(f"kind-{kind}")) for kind in kinds] == [False] * 4 + [True] * 2
    assert all(reads_both_ways(create(f"truepair-fusion-{size}")) for size in ("test", "tiny"))
    assert reads_both_ways(of_transformers(8, 4)) and not reads_both_ways(of_transformers(8, 4, is_decoder=True))


@pytest.mark.parametrize("name", ["truepair-fusion-test", "kind-custom", "kind-bidirectional"])
@torch.no_grad()
def test_a_reserved_mask_is_the_first_id_beyond_the_words_and_leaves_every_feature_as_it_was(name: str) -> None:
    model = fresh(name)
    assert mask_token(model) is None
    tokens = model.tokenize(TEXTS)
    features, words = model.encode_text(tokens), word_embedding(model).clone()
    before = model.config["text_cfg"]
    assert reserve_mask(model) == mask_token(model) == reserve_mask(model) == WORDS
    assert torch.equal(model.encode_text(tokens), features) and torch.equal(word_embedding(model)[:-1], words)
    assert model.config["text_cfg"] == before | {"vocab_size": WORDS + 1} and before["vocab_size"] == WORDS
    assert word_embedding(model).shape == (WORDS + 1, model.clip.text.width)
    masked = tokens.clone()
    masked[0, 1] = WORDS
    assert not torch.equal(model.encode_text(masked)[0], features[0])


def test_the_new_row_is_drawn_as_open_clip_draws_the_others_and_trained_if_they_are() -> None:
    model = fresh("kind-custom")
    model.clip.text.token_embedding = nn.Embedding(WORDS, 400).requires_grad_(False)
    reserve_mask(model)
    row = word_embedding(model)[-1]
    assert row.std().item() == pytest.approx(0.02, rel=0.1) and abs(row.mean().item()) < 0.003
    assert not word_embedding(model).requires_grad


def test_the_embedding_is_the_live_parameter_also_after_it_has_grown() -> None:
    model = fresh()
    reserve_mask(model)
    assert any(word_embedding(model) is parameter for parameter in model.parameters())
    assert word_embedding(model).requires_grad
    model.encode_text(torch.tensor([[49406, WORDS, 49407, *[0] * 21]]))[0, 0].backward()
    assert word_embedding(model).grad[WORDS].any()


def test_the_export_of_a_grown_model_loads_in_plain_open_clip_with_the_same_features(tmp_path: Path) -> None:
    model = fresh()
    reserve_mask(model)
    save_local_dir(model, tmp_path)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["vocab_size"] == 49409
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert torch.equal(theirs.encode_text(tokens, normalize=True), model.encode_text(model.tokenize(TEXTS)))
    assert mask_token(create(f"local-dir:{tmp_path}")) == WORDS


def test_a_tokenizer_of_transformers_has_its_own_mask_or_a_row_beyond_its_words() -> None:
    assert mask_token(of_transformers(8, 4)) == reserve_mask(of_transformers(8, 4)) == 4
    assert mask_token(of_transformers(7, None)) == reserve_mask(of_transformers(7, None)) == 7
    assert mask_token(of_transformers(8, None)) is None
    assert word_embedding(of_transformers(8, 4)).shape == (8, 16)


@pytest.mark.parametrize("case", ["transformers", "coca", "short"])
def test_where_no_row_can_be_added_the_user_is_told(case: str) -> None:
    model = of_transformers(8, None) if case == "transformers" else fresh("kind-coca" if case == "coca" else "kind-eos")
    if case == "short":
        model.clip.text.token_embedding = nn.Embedding(WORDS - 1, 16)
    before = word_embedding(model).shape
    with pytest.raises(UserError, match=r"has no mask token, and its embedding of .* cannot be given one; take"):
        reserve_mask(model)
    assert word_embedding(model).shape == before


def test_a_tower_of_another_kind_has_no_embedding_to_speak_of() -> None:
    model = fresh("kind-custom")
    model.clip.text = nn.Identity()
    assert not reads_both_ways(model)
    with pytest.raises(UserError, match=r"text tower of model 'kind-custom' \(Identity\) has no token embedding"):
        mask_token(model)
