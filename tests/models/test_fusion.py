"""The fusion encoder: every word sees every other and the whole image, padding is nothing, and its state is enough."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.models import DualEncoder, create
from truepair.models.fusion import Fusion, Shape
from truepair.models.masked_text import reserve_mask, word_embedding
from truepair.models.tokens import attended, encode_image_with_tokens, encode_text_with_tokens

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SMALL = Shape(
    layers=2, heads=2, width=8, feedforward=12, image_width=6, vocabulary=11, itm=True, mlm=True
)  # n, L, P of the inputs below: 3, 5, 4


def fusion(shape: Shape = SMALL, seed: int = 0) -> Fusion:
    torch.manual_seed(seed)
    return Fusion(shape)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT, IMAGE = drawn(3, 5, 8), drawn(3, 4, 6, seed=2)
THERE = torch.arange(5) < torch.tensor([[5], [3], [1]])


def changed(f: Fusion, text: Tensor = TEXT, image: Tensor = IMAGE, there: Tensor = THERE) -> Tensor:
    """(n, L) bool: where the outcome is another than that of the plain inputs."""
    return ((f(text, there, image) - f(TEXT, THERE, IMAGE)).abs() > 1e-4).any(dim=-1)


@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
@torch.no_grad()
def test_padding_and_what_stands_there_change_nothing_that_is_read(training: bool, seed: int) -> None:
    f = fusion().train(training)
    other = torch.where(THERE[..., None], TEXT, 100 * drawn(3, 5, 8, seed=seed))
    assert not changed(f, text=other)[THERE].any()
    cut = f(TEXT[1:2, :3], THERE[1:2, :3], IMAGE[1:2])
    torch.testing.assert_close(cut, f(TEXT, THERE, IMAGE)[1:2, :3], **CLOSE)


@pytest.mark.parametrize("place", [0, 2, 4])
@torch.no_grad()
def test_every_word_sees_every_other_before_and_after_it(place: int) -> None:
    other = TEXT.clone()
    other[0, place] += drawn(8, seed=3)
    assert changed(fusion(), text=other)[0].all() and not changed(fusion(), text=other)[1:].any()


@torch.no_grad()
def test_every_word_sees_every_patch_and_their_order_says_nothing() -> None:
    f = fusion()
    for patch in range(4):
        other = IMAGE.clone()
        other[1, patch] += drawn(6, seed=4)
        assert changed(f, image=other)[1].all() and not changed(f, image=other)[[0, 2]].any()
    assert not changed(f, image=IMAGE[:, [3, 1, 0, 2]]).any()
    assert changed(f, text=TEXT[:, [0, 2, 1, 3, 4]])[0].any(), "words carry their places, but each is itself"


@torch.no_grad()
def test_a_layer_is_self_attention_cross_attention_and_a_feed_forward_after_norms() -> None:
    f = fusion()
    text, image = TEXT, F.linear(f.project[0](IMAGE), f.project[1].weight, f.project[1].bias)
    for layer in f.layers:
        for norm, attention, memory in (
            (layer.norm1, layer.self_attn, None),
            (layer.norm2, layer.multihead_attn, image),
        ):
            query = norm(text)
            seen = query if memory is None else memory
            masked = THERE[:, None, None] if memory is None else None
            wq, wk, wv = attention.in_proj_weight.chunk(3)
            bq, bk, bv = attention.in_proj_bias.chunk(3)
            q, k, v = (
                F.linear(x, w, b).unflatten(2, (2, 4)).transpose(1, 2)
                for x, w, b in ((query, wq, bq), (seen, wk, bk), (seen, wv, bv))
            )
            logits = q @ k.mT / 4**0.5
            logits = logits if masked is None else logits.masked_fill(~masked, -torch.inf)
            text = text + attention.out_proj((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        text = text + layer.linear2(F.gelu(layer.linear1(layer.norm3(text))))
    torch.testing.assert_close(f(TEXT, THERE, IMAGE)[THERE], f.norm(text)[THERE], **CLOSE)


def test_layers_begin_with_weights_of_their_own() -> None:
    first, second = fusion().layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.multihead_attn.in_proj_weight, second.multihead_attn.in_proj_weight)


@torch.no_grad()
def test_matching_reads_the_first_position_alone() -> None:
    f = fusion()
    fused = f(TEXT, THERE, IMAGE)
    other = fused.clone()
    other[:, 1:] = 9
    assert f.match(fused).shape == (3, 2) and torch.equal(f.match(fused), f.match(other))
    assert not torch.equal(f.match(fused), f.match(fused + 1e-2 * drawn(3, 5, 8)))


def test_filling_is_berts_head_tied_to_the_embedding() -> None:
    f, embedding, hidden = fusion(), drawn(11, 8, seed=5).requires_grad_(), drawn(7, 8, seed=6)
    torch.nn.init.normal_(f.mlm_bias)
    logits = f.fill(hidden, embedding)
    dense, _, norm = f.mlm
    inner = F.layer_norm(F.gelu(hidden @ dense.weight.T + dense.bias), (8,), norm.weight, norm.bias)
    torch.testing.assert_close(logits, inner @ embedding.T + f.mlm_bias, **CLOSE)
    F.cross_entropy(logits, torch.arange(7)).backward()
    assert embedding.grad.any(dim=1).all(), "the embedding learns from every answer"
    some = torch.tensor([9, 0, 4])
    torch.testing.assert_close(f.fill(hidden, embedding, some), logits[:, some], **CLOSE)
    assert f.fill(hidden[:0], embedding, some).shape == (0, 3)


def model_and_inputs(name: str) -> tuple[DualEncoder, tuple[Tensor, Tensor, Tensor]]:
    """Hidden states, `attended` and image tokens of two pictures, a caption and an empty one."""
    torch.manual_seed(0)
    model = create(name)
    reserve_mask(model)
    tokens = model.tokenize(["two small red squares", ""])
    images = torch.randint(0, 256, (2, 3, model.image_size, model.image_size), dtype=torch.uint8)
    hidden = encode_text_with_tokens(model, tokens)[1]
    return model, (hidden, attended(model, tokens), encode_image_with_tokens(model, images)[1])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["truepair-fusion-test", "truepair-fusion-small", "truepair-fusion-tiny"])
def test_it_fits_the_towers_and_gives_numbers_in_float32_also_of_a_caption_without_words(
    name: str, precision: torch.dtype
) -> None:
    model, inputs = model_and_inputs(name)
    f = Fusion.build(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        fused = f(*inputs)
        match, fill = f.match(fused), f.fill(fused[:, 1], word_embedding(model))
    assert match.dtype == fill.dtype == torch.float32 and fill.shape == (2, 49409)
    (match.logsumexp(dim=1).sum() + fill.logsumexp(dim=1).sum()).backward()
    for p in [*f.parameters(), word_embedding(model)]:
        assert p.grad is not None and p.grad.isfinite().all()
    assert fused.isfinite().all() and match.isfinite().all() and fill.isfinite().all()


@torch.no_grad()
def test_a_text_of_which_nothing_is_attended_is_one_of_its_start() -> None:
    f, start = fusion(), torch.arange(5).expand(3, 5) == 0
    there = torch.zeros_like(start)
    assert torch.equal(f(TEXT, there, IMAGE), f(TEXT, start, IMAGE)) and not there.any()
    assert f(TEXT, start, IMAGE).isfinite().all()


def test_by_default_it_is_as_deep_and_wide_as_the_text_tower() -> None:
    model = create("truepair-tiny")
    assert Fusion.build(model).shape == Shape(1, 2, 128, 512, 512, 49408, True, True)
    found = Fusion.build(model, layers=3, heads=4, itm=True, mlm=False)
    assert found.shape == Shape(3, 4, 128, 512, 512, 0, True, False)
    assert not any("mlm" in name for name in found.state_dict())
    assert not any("project.1" in name for name in Fusion.build(create("truepair-fusion-test")).state_dict())


def test_the_base_model_is_of_the_size_of_nevers_towers() -> None:
    with torch.device("meta"):
        import open_clip

        clip = open_clip.create_model("truepair-fusion-base", device="meta")
    vision, text = clip.visual, clip.text
    assert (vision.image_size, vision.conv1.kernel_size) == ((256, 256), (16, 16))
    assert (len(vision.transformer.resblocks), vision.transformer.width, vision.proj.shape[1]) == (12, 768, 256)
    assert (len(text.transformer.resblocks), text.width, text.heads, text.context_length) == (6, 768, 12, 25)
    assert text.attn_mask is None and text.pool_type == "first"


def test_a_head_that_was_not_built_is_missed_loudly() -> None:
    f = fusion(Shape(1, 2, 8, 8, 8, 0, itm=False, mlm=False))
    with pytest.raises(ValueError, match="without ITM"):
        f.match(TEXT)
    with pytest.raises(ValueError, match="without MLM"):
        f.fill(TEXT[:, 0], TEXT[0])


@given(
    layers=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]), image=st.sampled_from([5, 8]), itm=st.booleans(),
    mlm=st.booleans()
)  # fmt: skip
@settings(max_examples=8)
@torch.no_grad()
def test_a_state_alone_brings_it_back(layers: int, heads: int, image: int, itm: bool, mlm: bool) -> None:
    f = fusion(Shape(layers, heads, 8, 12, image, 11 if mlm else 0, itm, mlm), seed=4)
    state = copy.deepcopy(f.state_dict())
    before = torch.random.get_rng_state()
    found = Fusion.from_state(state)
    assert torch.equal(torch.random.get_rng_state(), before), "opening one draws nothing"
    assert found.shape == f.shape
    pictures = drawn(3, 4, image)
    assert torch.equal(found(TEXT, THERE, pictures), f(TEXT, THERE, pictures))
    state["norm.weight"].zero_()
    assert found.norm.weight.any(), "it shares no memory with the state"


def test_a_saved_one_is_read_with_weights_only_and_refuses_another_shape(tmp_path: Path) -> None:
    torch.save(fusion().state_dict(), tmp_path / "fusion.pt")
    state = torch.load(tmp_path / "fusion.pt", weights_only=True, mmap=True)
    assert torch.equal(Fusion.from_state(state).norm.weight, fusion().norm.weight)
    other = fusion(Shape(2, 4, 8, 12, 6, 11, True, True))  # the same tensors, other heads
    with pytest.raises(UserError, match="has another shape than this one"):
        other.load_state_dict(state)


def extra(**changes: Any) -> dict[str, Any]:
    state = fusion().state_dict()
    return state | {"_extra_state": state["_extra_state"] | changes}


HOSTILE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no shape": {name: x for name, x in fusion().state_dict().items() if name != "_extra_state"},
    "a list": fusion().state_dict() | {"_extra_state": [1, 2]},
    "one number too many": extra(depth=1),
    "many layers": extra(layers=10**9),
    "no layers": extra(layers=0),
    "no heads": extra(heads=0),
    "heads that do not share the width": extra(heads=3),
    "a width beyond memory": extra(width=2**30),
    "a vocabulary beyond memory": extra(vocabulary=2**30),
    "a negative width": extra(width=-8),
    "a float": extra(width=8.0),
    "a bool for a number": extra(layers=True),
    "a number for a bool": extra(itm=1),
    "a head it has not": {name: x for name, x in fusion().state_dict().items() if not name.startswith("itm")},
    "a head too many": extra(mlm=False),
    "a wrong tensor": fusion().state_dict() | {"norm.weight": torch.zeros(9)},
    "whole numbers": fusion().state_dict() | {"norm.weight": torch.zeros(8, dtype=torch.int64)},
    "one value for many": fusion().state_dict() | {"norm.weight": torch.zeros(1).expand(8)},
    "a tensor without values": fusion().state_dict() | {"norm.weight": torch.zeros(8, device="meta")},
    "a sparse tensor": fusion().state_dict() | {"norm.weight": torch.zeros(8).to_sparse()},
    "no tensor": fusion().state_dict() | {"norm.weight": "8"},
    "an unknown name": fusion().state_dict() | {"more": torch.zeros(1)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_state_that_cannot_be_one_is_refused(case: str) -> None:
    with pytest.raises(UserError, match="fusion encoder"):
        Fusion.from_state(HOSTILE[case])


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"layers": -1}, {"heads": -2}])
def test_a_shape_that_cannot_be_is_the_users_error(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="a fusion encoder of"):
        Fusion.build(create("truepair-fusion-test"), **sizes)
