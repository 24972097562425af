"""Patch and word tokens are open_clip's own, as unit rows, without what is no patch and no word."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.models import DualEncoder, create, image_tokens, text_tokens
from truepair.models.tokens import (
    attended,
    encode_image_with_tokens,
    encode_text_with_tokens,
    prefix_tokens,
    project_image_tokens,
    project_text_tokens,
    text_width,
    token_width,
    words,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TOWERS = {
    "late-norm": VISION | {"final_ln_after_pool": True},
    "average": VISION | {"pool_type": "avg"},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "xcit": {"timm_model_name": "xcit_nano_12_p8_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32},
    "timm-map": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "timm-vit": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
}
TEXTS = ["a dog", "", "two small red squares above a large green ring", "0 !~ 0", "word " * 50]
COUNTS = [2, 0, 9, 4, 22]  # words of them in a context of 24


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """open_clip knows every one of TOWERS as "tower-NAME"."""
    folder = tmp_path_factory.mktemp("towers")
    for name, vision in TOWERS.items():
        config = {
            "embed_dim": 64 if name == "timm-map" else 16,
            "custom_text": True,
            "vision_cfg": vision,
            "text_cfg": TEXT,
        }
        (folder / f"tower-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def fresh(name: str) -> DualEncoder:
    torch.manual_seed(0)
    return create(name).eval()


def images(model: DualEncoder, count: int = 3) -> Tensor:
    size = model.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels(model: DualEncoder) -> Tensor:
    return (images(model).float() - model.mean) / model.std


def assert_unit_rows(rows: Tensor) -> None:
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))


@pytest.mark.parametrize("name", ["kind-custom", "tower-late-norm", "tower-average"])
@torch.no_grad()
def test_patch_tokens_are_those_that_open_clip_outputs(name: str) -> None:
    model = fresh(name)
    found = image_tokens(model, images(model))
    model.clip.visual.output_tokens = True
    _, theirs = model.clip.visual(pixels(model))
    assert found.shape == (3, 16, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, normalize(theirs, dim=-1), **CLOSE)


@torch.no_grad()
def test_patch_tokens_of_a_tower_that_pools_by_attention_are_what_it_attends_to() -> None:
    model = fresh("kind-coca")
    seen: list[Tensor] = []
    model.clip.visual.transformer.register_forward_hook(lambda module, given, out: seen.append(out))
    model.encode_image(images(model))
    torch.testing.assert_close(image_tokens(model, images(model)), normalize(seen[0][:, 1:], dim=-1), **CLOSE)


def by_place(grid: Tensor) -> Tensor:
    """(b, C, h, w) -> (b, h·w, C), cell by cell."""
    return torch.stack([grid[:, :, y, x] for y in range(grid.shape[2]) for x in range(grid.shape[3])], dim=1)


@pytest.mark.parametrize(
    ("name", "last"), [("tower-resnet", "layer4"), ("truepair-tiny", "trunk.layer4")], ids=["modified", "timm"]
)
@torch.no_grad()
def test_the_tokens_of_a_convolutional_tower_are_the_cells_of_its_last_map(name: str, last: str) -> None:
    model = fresh(name)
    seen: list[Tensor] = []
    model.clip.visual.get_submodule(last).register_forward_hook(lambda module, given, out: seen.append(out))
    model.encode_image(images(model))
    found = image_tokens(model, images(model))
    assert found.shape[1] == seen[0].shape[2] * seen[0].shape[3]
    torch.testing.assert_close(found, normalize(by_place(seen[0]), dim=-1), **CLOSE)
    assert_unit_rows(found)


@torch.no_grad()
def test_a_timm_transformers_class_token_is_no_patch() -> None:
    model = fresh("tower-timm-vit")
    theirs = model.clip.visual.trunk.forward_features(pixels(model))
    assert theirs.shape[1] == 101
    torch.testing.assert_close(image_tokens(model, images(model)), normalize(theirs[:, 1:], dim=-1), **CLOSE)


@torch.no_grad()
def test_a_map_with_its_channels_last_is_read_as_such() -> None:
    model = fresh("truepair-tiny")
    trunk = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1)
    ).eval()
    model.clip.visual.trunk = trunk
    theirs = trunk.forward_features(pixels(model))
    assert theirs.shape == (3, 4, 4, 16)
    wanted = normalize(by_place(theirs.permute(0, 3, 1, 2)), dim=-1)
    torch.testing.assert_close(image_tokens(model, images(model)), wanted, **CLOSE)


EVERY_TOWER = ["kind-custom", "kind-coca", "truepair-tiny", *(f"tower-{name}" for name in TOWERS)]


@pytest.mark.parametrize("name", EVERY_TOWER)
def test_one_pass_gives_the_features_of_an_image_and_its_tokens(name: str) -> None:
    model = fresh(name)
    passes: list[Tensor] = []
    first = next(module for module in model.clip.visual.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, given, out: passes.append(out))
    features, cells = encode_image_with_tokens(model, images(model))
    assert len(passes) == 1
    torch.testing.assert_close(features, model.encode_image(images(model)), **CLOSE)
    torch.testing.assert_close(normalize(cells, dim=-1), image_tokens(model, images(model)), **CLOSE)
    assert features.dtype == cells.dtype == torch.float32
    assert cells.shape[2] == token_width(model) and (cells.norm(dim=-1) - 1).abs().max() > 0.1
    (features[0, 0] + cells[0, 0, 0]).backward()
    assert first.weight.grad is not None and first.weight.grad.any()


@pytest.mark.parametrize("name", [name for name in EVERY_TOWER if name != "tower-xcit"])  # twelve blocks to trace
def test_towers_that_are_compiled_give_their_tokens_compiled_and_alike(name: str) -> None:
    model, graphs = fresh(name), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append({node.target for node in graph.graph.nodes})
        return graph.forward

    features, cells = encode_image_with_tokens(model, images(model))
    names = list(model.state_dict())
    torch.compiler.reset()  # of what other tests compiled
    model.compile_towers(backend=backend, fullgraph=True)
    found = encode_image_with_tokens(model, images(model))
    assert len(graphs) == 1, "the whole tower is one graph"
    torch.testing.assert_close(found, (features, cells), **CLOSE)
    found[0].sum().backward()
    assert list(model.state_dict()) == names
    encode_image_with_tokens(model, images(model))
    assert len(graphs) == 1, "compiled once"


def test_the_gradient_of_one_pass_is_that_of_the_two_passes_it_stands_for() -> None:
    model = fresh("kind-custom")
    weight = model.clip.visual.conv1.weight
    features, cells = encode_image_with_tokens(model, images(model))
    found = torch.autograd.grad(features[:, 0].sum() + normalize(cells, dim=-1)[..., 1].sum(), weight)[0]
    two = model.encode_image(images(model))[:, 0].sum() + image_tokens(model, images(model))[..., 1].sum()
    torch.testing.assert_close(found, torch.autograd.grad(two, weight)[0], **CLOSE)


@torch.no_grad()
def test_features_and_tokens_of_one_pass_are_float32_also_under_autocast() -> None:
    model = fresh("truepair-tiny")
    with torch.autocast("cpu", torch.bfloat16):
        features, cells = encode_image_with_tokens(model, images(model))
        torch.testing.assert_close(features, model.encode_image(images(model)), **CLOSE)
    assert features.dtype == cells.dtype == torch.float32


@pytest.mark.parametrize("kind", ["custom", "eos", "sigmoid", "bidirectional", "last"])
@torch.no_grad()
def test_word_tokens_are_those_that_open_clip_outputs_of_padded_captions(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    tokens = model.tokenize(TEXTS[:4])
    found = text_tokens(model, tokens)
    model.clip.text.output_tokens = True
    _, theirs = model.clip.text(model.tokenizer(TEXTS[:4]))
    assert found.shape == (*tokens.shape, 16) and found.dtype == torch.float32
    mask = found.any(dim=-1)
    assert mask.sum(dim=1).tolist() == COUNTS[:4]
    torch.testing.assert_close(found[mask], normalize(theirs[:, : tokens.shape[1]], dim=-1)[mask], **CLOSE)


@pytest.mark.parametrize("kind", ["cls", "coca"])
@torch.no_grad()
def test_the_class_token_at_the_end_of_a_caption_is_no_word(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    seen: list[Tensor] = []
    model.clip.text.transformer.register_forward_hook(lambda module, given, out: seen.append(out))
    tokens = model.tokenize(TEXTS)
    model.encode_text(tokens)
    found = text_tokens(model, tokens)
    mask = found.any(dim=-1)
    assert found.shape == (5, 24, 16) and mask.sum(dim=1).tolist() == COUNTS
    wanted = normalize(model.clip.text.ln_final(seen[0][:, :-1]), dim=-1)
    torch.testing.assert_close(found[mask], wanted[mask], **CLOSE)


def test_words_are_what_stands_between_start_and_end_also_where_it_is_the_padding_id() -> None:
    model = fresh("kind-custom")
    tokens = model.tokenize(TEXTS)
    found = words(model, tokens)
    assert found.sum(dim=1).tolist() == COUNTS
    read = [model.tokenizer.decode(row[mask].tolist()).strip() for row, mask in zip(tokens, found, strict=True)]
    assert read[:4] == TEXTS[:4]
    assert 0 in tokens[3][found[3]].tolist()  # "!" is token 0, and so is the padding


@torch.no_grad()
def test_a_caption_has_the_same_word_tokens_at_every_length_that_holds_it() -> None:
    model = fresh("kind-custom")
    tokens = model.tokenizer(["a dog"])
    torch.testing.assert_close(text_tokens(model, tokens[:, :8]), text_tokens(model, tokens)[:, :8], **CLOSE)


def with_bert(folder: Path) -> DualEncoder:
    """A model whose text tower is a tiny BERT of transformers, with its own tokenizer."""
    transformers = pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ).save_pretrained(folder)
    model = fresh("kind-custom")
    model.tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=6)
    model.clip.text = open_clip.hf_model.HFTextEncoder(
        str(folder), 16, pooler_type="mean_pooler", proj_type="linear", pretrained=False, output_tokens=True
    ).eval()
    model.pad_id = None
    return model


@torch.no_grad()
def test_word_tokens_of_a_transformers_model_are_its_last_hidden_state(tmp_path: Path) -> None:
    model = with_bert(tmp_path)
    tokens = model.tokenize(["a dog", "cat", ""])
    pooled, theirs = model.clip.text(tokens)
    found = text_tokens(model, tokens)
    mask = found.any(dim=-1)
    assert mask.tolist() == [[False, True, True, *[False] * 3], [False, True, *[False] * 4], [False] * 6]
    torch.testing.assert_close(found[mask], normalize(theirs, dim=-1)[mask], **CLOSE)
    features, hidden = encode_text_with_tokens(model, tokens)
    assert torch.equal(features, normalize(pooled, dim=-1)) and torch.equal(hidden, theirs)
    assert attended(model, tokens).sum(dim=1).tolist() == [4, 3, 2] and text_width(model) == 16
    wanted = normalize(theirs @ model.clip.text.proj.weight.T, dim=-1)
    torch.testing.assert_close(project_text_tokens(model, hidden), wanted, **CLOSE)


TEXT_TOWERS = ["custom", "eos", "sigmoid", "bidirectional", "last", "cls", "coca"]


@pytest.mark.parametrize("kind", TEXT_TOWERS)
def test_one_pass_gives_the_features_of_a_caption_and_its_hidden_states(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    tokens = model.tokenize(TEXTS)
    passes: list[Tensor] = []
    embedding = model.clip.text.token_embedding
    embedding.register_forward_hook(lambda module, given, out: passes.append(out))
    features, hidden = encode_text_with_tokens(model, tokens)
    assert len(passes) == 1
    assert torch.equal(features, model.encode_text(tokens))
    said = words(model, tokens)
    torch.testing.assert_close(normalize(hidden, dim=-1)[said], text_tokens(model, tokens)[said], **CLOSE)
    assert hidden.shape == (*tokens.shape, text_width(model)) and hidden.dtype == features.dtype == torch.float32
    (features[0, 0] + hidden[0, 1, 0]).backward()
    assert embedding.weight.grad is not None and embedding.weight.grad.any()


@pytest.mark.parametrize("kind", ["custom", "bidirectional"])
@torch.no_grad()
def test_hidden_states_of_a_caption_are_open_clips_at_every_position_it_has(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    tokens = model.tokenize(TEXTS[:4])
    features, hidden = encode_text_with_tokens(model, tokens)
    model.clip.text.output_tokens = True
    pooled, theirs = model.clip.text(model.tokenizer(TEXTS[:4]))
    there = attended(model, tokens)
    torch.testing.assert_close(features, normalize(pooled, dim=-1), **CLOSE)
    torch.testing.assert_close(hidden[there], theirs[:, : tokens.shape[1]][there], **CLOSE)


def test_compiled_towers_that_read_both_ways_give_their_hidden_states_compiled_and_alike() -> None:
    model, graphs = fresh("kind-bidirectional"), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    tokens = model.tokenize(TEXTS)
    wanted = encode_text_with_tokens(model, tokens)
    torch.compiler.reset()
    model.compile_towers(backend=backend, fullgraph=True)
    found = encode_text_with_tokens(model, tokens)
    assert len(graphs) == 1
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_attended_are_start_words_and_end_also_where_a_word_is_the_padding_id() -> None:
    model = fresh("kind-custom")
    start, end, dog = model.tokenizer.sot_token_id, model.tokenizer.eot_token_id, 1929
    tokens = torch.tensor(
        [
            [start, dog, end, 0, 0, 0],
            [start, 0, dog, 0, end, 0],  # "! dog !"
            [start, end, 0, 0, 0, 0],  # nothing said
            [start, dog, dog, dog, dog, end],  # cut by the tokenizer
            [start, end, end, dog, 0, end],  # what comes after the end is no caption
        ]
    )
    assert attended(model, tokens).sum(dim=1).tolist() == [3, 5, 2, 6, 2]
    assert attended(model, tokens)[:, 0].all() and not attended(model, tokens)[4, 2:].any()


class Ended:
    """A tokenizer that pads with its end, as SigLIP's does."""

    pad_token_id = eos_token_id = 1


class Padding:
    pad_token_id, eos_token_id = 0, 1


def test_attended_of_tokenizers_that_pad_with_their_end_or_with_an_id_of_its_own() -> None:
    model = fresh("kind-custom")
    tokens = torch.tensor([[5, 6, 1, 1], [1, 1, 1, 1]])
    model.tokenizer = Ended()
    assert attended(model, tokens).tolist() == [[True, True, True, False], [True, False, False, False]]
    model.tokenizer = Padding()
    assert attended(model, torch.tensor([[5, 1, 0, 0]])).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("kind", ["custom", "sigmoid", "bidirectional"])
@torch.no_grad()
def test_a_projected_state_at_the_pooled_position_is_the_captions_feature(kind: str) -> None:
    model = fresh(f"kind-{kind}")
    tokens = model.tokenize(TEXTS)
    features, hidden = encode_text_with_tokens(model, tokens)
    at = torch.full((5,), 23) if kind == "sigmoid" else tokens.argmax(dim=1)
    found = project_text_tokens(model, hidden)
    assert found.shape == (*tokens.shape, 16)
    torch.testing.assert_close(found[torch.arange(5), at], features, **CLOSE)


@pytest.mark.parametrize("name", ["tower-average", "truepair-tiny", "tower-xcit", "tower-timm-vit"])
@torch.no_grad()
def test_projected_patches_are_what_the_tower_makes_of_a_picture_with_that_patch_alone(name: str) -> None:
    model = fresh(name)
    visual = model.clip.visual
    features, cells = encode_image_with_tokens(model, images(model))
    found = project_image_tokens(model, cells)
    assert found.shape == (*cells.shape[:2], features.shape[1])
    assert_unit_rows(found)
    if name == "tower-average":
        torch.testing.assert_close(found, normalize(cells @ visual.proj, dim=-1), **CLOSE)
    elif name == "truepair-tiny":  # its last map has one cell, and pooling is their mean
        torch.testing.assert_close(found[:, 0], features, **CLOSE)
    else:  # the class token's way out
        class_token = visual.trunk.forward_features(pixels(model))[:, :1]
        torch.testing.assert_close(project_image_tokens(model, class_token)[:, 0], features, **CLOSE)
        torch.testing.assert_close(found, normalize(visual.head(cells), dim=-1), **CLOSE)


@torch.no_grad()
def test_late_norms_are_part_of_a_patchs_way_to_a_feature() -> None:
    model = fresh("tower-late-norm")
    seen: list[Tensor] = []
    model.clip.visual.ln_post.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    features = model.encode_image(images(model))
    torch.testing.assert_close(project_image_tokens(model, seen[0][:, None])[:, 0], features, **CLOSE)


@torch.no_grad()
def test_so_is_the_norm_after_averaging_of_a_timm_transformer() -> None:
    model = fresh("tower-timm-vit")
    trunk = model.clip.visual.trunk
    trunk.global_pool, trunk.fc_norm = "avg", nn.LayerNorm(trunk.num_features)
    nn.init.normal_(trunk.fc_norm.weight)
    cells = encode_image_with_tokens(model, images(model))[1]
    alone = trunk.forward_head(cells.flatten(0, 1)[:, None].expand(-1, 3, -1))  # a class token and two patches, alike
    wanted = normalize(model.clip.visual.head(alone), dim=-1).unflatten(0, cells.shape[:2])
    torch.testing.assert_close(project_image_tokens(model, cells), wanted, **CLOSE)


@torch.no_grad()
def test_attention_over_one_cell_is_the_way_of_a_resnets_cells() -> None:
    model = fresh("tower-resnet")
    pool = model.clip.visual.attnpool
    pool.positional_embedding.zero_()
    cells = encode_image_with_tokens(model, images(model))[1]
    height, width = 2, 2
    every = torch.stack([cells[:, i, :, None, None].expand(-1, -1, height, width) for i in range(4)], dim=1)
    wanted = normalize(pool(every.flatten(0, 1)), dim=-1).unflatten(0, (3, 4))  # all cells alike
    torch.testing.assert_close(project_image_tokens(model, cells), wanted, **CLOSE)


@pytest.mark.parametrize("name", ["kind-coca", "tower-timm-map"])
def test_towers_that_pool_by_attention_have_no_projection_of_single_patches(name: str) -> None:
    model = fresh(name)
    cells = encode_image_with_tokens(model, images(model))[1]
    assert name == "kind-coca" or cells.shape[2] == model.config["embed_dim"]  # the width does not tell
    with pytest.raises(UserError, match=rf"'{name}' \(VisionTransformer\) has no projection of single patches"):
        project_image_tokens(model, cells)


@torch.no_grad()
def test_a_map_of_one_cell_is_the_way_of_a_timm_towers_cells_its_last_norm_too() -> None:
    model = fresh("tower-convnext")
    trunk = model.clip.visual.trunk
    nn.init.normal_(trunk.head.norm.weight)
    nn.init.normal_(trunk.head.norm.bias)
    cells = encode_image_with_tokens(model, images(model))[1]
    alone = trunk.forward_head(cells.flatten(0, 1)[:, :, None, None])
    wanted = normalize(model.clip.visual.head(alone), dim=-1).unflatten(0, cells.shape[:2])
    torch.testing.assert_close(project_image_tokens(model, cells), wanted, **CLOSE)


@pytest.mark.parametrize("change", ["a classifier", "a hidden layer", "another norm"])
def test_a_timm_tower_that_does_more_after_pooling_has_no_projection_of_single_patches(change: str) -> None:
    model = fresh("tower-convnext")
    trunk = model.clip.visual.trunk
    cells = encode_image_with_tokens(model, images(model))[1]
    if change == "a classifier":
        trunk.reset_classifier(64)
    elif change == "a hidden layer":
        trunk.head.pre_logits = nn.Linear(64, 64)
    else:
        trunk.head.norm = nn.BatchNorm2d(64)
    with pytest.raises(UserError, match="has no projection of single patches"):
        project_image_tokens(model, cells)


def test_xcit_at_32_px_has_sixteen_patches_and_a_residual_network_one_cell() -> None:
    models = [fresh("tower-xcit"), fresh("truepair-tiny")]
    assert [encode_image_with_tokens(model, images(model))[1].shape[1] for model in models] == [16, 1]


def test_tokens_pass_their_gradient_on() -> None:
    model = fresh("kind-custom")
    (image_tokens(model, images(model))[0, 0, 0] + text_tokens(model, model.tokenize(["a dog"]))[0, 1, 0]).backward()
    assert model.clip.visual.conv1.weight.grad.any() and model.clip.text.token_embedding.weight.grad.any()


@torch.no_grad()
def test_tokens_are_float32_also_under_autocast() -> None:
    model = fresh("kind-custom")
    with torch.autocast("cpu", torch.bfloat16):
        patches, spoken = image_tokens(model, images(model)), text_tokens(model, model.tokenize(["a dog"]))
    assert patches.dtype == spoken.dtype == torch.float32
    assert_unit_rows(patches)


class Opaque(nn.Module):
    """A tower that gives one vector only."""

    num_features = 7

    def forward_features(self, x: Any) -> Tensor:
        return x.flatten(1)


def test_towers_without_tokens_are_refused_by_name() -> None:
    model = fresh("truepair-tiny")
    given, tokens = images(model), model.tokenize(["a dog"])
    model.clip.visual.trunk = Opaque()
    with pytest.raises(UserError, match=r"image tower of model 'truepair-tiny' \(Opaque\) gives no patch tokens"):
        image_tokens(model, given)
    with pytest.raises(UserError, match="gives no patch tokens"):
        encode_image_with_tokens(model, given)
    model.clip.visual = Opaque()
    for without in (lambda: image_tokens(model, given), lambda: token_width(model)):
        with pytest.raises(UserError, match="gives no patch tokens"):
            without()
    model.clip.text = Opaque()
    with pytest.raises(UserError, match=r"text tower of model 'truepair-tiny' \(Opaque\) gives no word tokens"):
        text_tokens(model, tokens)
    for without in (
        lambda: encode_text_with_tokens(model, tokens),
        lambda: text_width(model),
        lambda: project_text_tokens(model, torch.zeros(1, 2, 16)),
    ):
        with pytest.raises(UserError, match="gives no word tokens"):
            without()


def test_class_and_register_tokens_come_before_the_patches_where_they_are_asked_for() -> None:
    for name in ("truepair-test", "truepair-fusion-small", "truepair-tiny"):
        model = create(name).eval()
        given = images(model)
        pooled, patches = encode_image_with_tokens(model, given)
        same, all_tokens = encode_image_with_tokens(model, given, prefix=True)
        count = prefix_tokens(model)
        assert count == (0 if name == "truepair-tiny" else 1)
        assert torch.equal(pooled, same) and torch.equal(all_tokens[:, count:], patches)
        assert all_tokens.shape[1] == patches.shape[1] + count
    visual = create("truepair-test").eval()
    wanted = visual.encode_image(images(visual))
    first = encode_image_with_tokens(visual, images(visual), prefix=True)[1][:, :1]
    torch.testing.assert_close(project_image_tokens(visual, first)[:, 0], wanted)  # pooled at the class token
