"""A bank of concepts embeds names as its encoder does, and finds the nearest exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from truepair.errors import UserError
from truepair.models import create
from truepair.models.concepts import PROMPTS, ConceptBank, prompted, read_concepts, stored_names
from truepair.models.dual import DualEncoder
from truepair.pairs.table import PairTable


def filled(count: int, dim: int = 16, seed: int = 0) -> ConceptBank:
    bank = ConceptBank([f"thing {i}" for i in range(count)], dim)
    random = torch.Generator().manual_seed(seed)
    bank.features.copy_(normalize(torch.randn(count, dim, generator=random), dim=1))
    return bank


@settings(max_examples=40)
@given(count=st.integers(1, 70), images=st.integers(0, 9), k=st.integers(0, 20), chunk=st.integers(1, 80))
def test_the_nearest_are_those_of_a_whole_sort(count: int, images: int, k: int, chunk: int) -> None:
    bank = filled(count)
    seen = normalize(torch.randn(images, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    scores, ids = bank.nearest(seen, k, chunk)
    assert scores.shape == ids.shape == (images, k)
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    whole = seen.double().numpy() @ bank.features.double().numpy().T
    found = min(k, count)
    np.testing.assert_array_equal(ids[:, :found], np.argsort(-whole, axis=1)[:, :found])
    np.testing.assert_allclose(scores[:, :found], -np.sort(-whole, axis=1)[:, :found], atol=1e-6)
    assert (ids[:, found:] == -1).all() and scores[:, found:].isnan().all()


def test_half_precision_images_are_compared_in_float32() -> None:
    bank, seen = filled(50), normalize(torch.randn(4, 16), dim=1).half()
    scores, _ = bank.nearest(seen, 3)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, bank.nearest(seen.float(), 3)[0], rtol=0, atol=0)


def test_a_bank_without_concepts_finds_none() -> None:
    scores, ids = ConceptBank([], 16).nearest(torch.zeros(3, 16), 2)
    assert (ids == -1).all() and scores.isnan().all()


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    return create("truepair-test")


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_features_are_the_mean_over_prompts_one_by_one(model: DualEncoder, batch_size: int) -> None:
    names = ["dog", "apple", "hot air balloon", "a {} of {braces}"]
    bank = ConceptBank(names, model.config["embed_dim"])
    bank.refresh(model, batch_size)
    model.eval()
    with torch.no_grad():
        for name, features in zip(names, bank.features, strict=True):
            texts = [model.encode_text(model.tokenize([prompted(prompt, name)])) for prompt in PROMPTS]
            torch.testing.assert_close(features, normalize(torch.cat(texts).mean(0), dim=0), atol=1e-5, rtol=0)
    assert not bank.features.requires_grad


def test_the_model_is_evaluating_meanwhile_and_each_module_gets_its_state_back(model: DualEncoder) -> None:
    seen: list[bool] = []
    model.train()
    model.clip.visual.eval()  # as a locked tower is
    before = [module.training for module in model.modules()]
    hook = model.clip.text.register_forward_hook(lambda module, *_: seen.append(module.training))
    bank = ConceptBank(["dog"], model.config["embed_dim"])
    bank.refresh(model)
    assert seen and not any(seen)
    assert [module.training for module in model.modules()] == before

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook.remove()
    hook = model.clip.text.register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        bank.refresh(model)
    hook.remove()
    assert [module.training for module in model.modules()] == before


def test_prompts_say_a_or_an() -> None:
    assert prompted("a photo of a {}", "apple") == "a photo of an apple"
    assert prompted("a photo of a {}", "dog") == "a photo of a dog"
    assert prompted("{}", "apple") == "apple"
    assert prompted("the {}, a {}.", "egg") == "the egg, an egg."


def test_a_saved_bank_comes_back_with_its_names(tmp_path: Path) -> None:
    bank = filled(5)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    state = torch.load(tmp_path / "bank.pt", weights_only=True)
    back = ConceptBank.from_state(state)
    assert back.names == bank.names
    torch.testing.assert_close(back.features, bank.features, rtol=0, atol=0)
    other = ConceptBank(list("abcde"), 16)
    other.load_state_dict(state)
    assert other.names == bank.names


def test_a_list_is_read_in_order_without_empty_lines_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffdog\r\n\r\n  ice \t cream \ncat\ndog\n\u3000\nÉlan".encode())
    assert read_concepts(file) == ["dog", "ice cream", "cat", "Élan"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no concept"),
        (b"\n \n\t\n", "holds no concept"),
        (b"dog\n\xff\xfe\n", "is not UTF-8"),
        (b"dog\n" + b"x" * 1_000_000, "line 2: 1,000,000 characters"),
        (b"dog\nc\x00at\n", "line 2: control characters"),
        (b"\x1b[31mdog", "line 1: control characters"),
    ],
)
def test_a_hostile_list_is_one_clear_line(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_concepts(file)
    assert str(file) in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_list_that_is_not_there_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for file in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_concepts(file)


def test_features_are_saved_and_moved_but_neither_trained_nor_sent_to_other_ranks_at_every_step() -> None:
    bank = filled(3)
    assert not list(bank.buffers()) and not bank.features.requires_grad
    assert "features" in bank.state_dict() and bank.half().features.dtype == torch.float16


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"_extra_state": 3, "features": torch.zeros(2, 4)},
        {"_extra_state": {"names": "ab"}, "features": torch.zeros(2, 4)},
        {"_extra_state": {"names": ["a", 1]}, "features": torch.zeros(2, 4)},
        {"_extra_state": {"names": ["a", "\x1b[31m"]}, "features": torch.zeros(2, 4)},
        {"_extra_state": {"names": ["a", "b"]}, "features": [[0.0], [0.0]]},
        {"_extra_state": {"names": ["a", "b"]}, "features": torch.zeros(3, 4)},
        {"_extra_state": {"names": ["a", "b"]}, "features": torch.zeros(2)},
    ],
)
def test_a_state_that_is_no_banks_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no names with a feature each"):
        ConceptBank.from_state(state)


@pytest.fixture
def named(scenes: Path, tmp_path: Path) -> PairTable:
    return PairTable.open(scenes / "test").derive(tmp_path / "named")


def test_stored_ids_are_names_or_none(named: PairTable) -> None:
    ids = np.resize(np.array([[0, 2, -1], [1, -1, -1]], np.int32), (len(named), 3))
    named.add_column("concepts", ids, {"names": ["a", "b c", "é"]})
    assert stored_names(named, "concepts") == ["a", "b c", "é"]


@pytest.mark.parametrize(
    ("names", "wrong", "words"),
    [
        (["a", "b"], 2, r"row 40: concepts \[0, 2\], but there are 2 names"),
        (["a", "b"], -2, r"row 40: concepts \[0, -2\], but there are 2 names"),
        ("ab", 1, "holds no concepts"),
        ([], 1, "holds no concepts"),
        (["a", 7], 1, "holds no concepts"),
        (["a", "b\x07"], 1, "holds no concepts"),
        (["a", ""], 1, "holds no concepts"),
    ],
)
def test_ids_without_a_name_and_names_that_are_none_are_one_clear_line(
    named: PairTable, names: Any, wrong: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truepair.models.concepts.ROWS", 16)
    ids = np.zeros((len(named), 2), np.int32)
    ids[40, 1] = wrong
    named.add_column("concepts", ids, {"names": names})
    with pytest.raises(UserError, match=words) as error:
        stored_names(named, "concepts")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("values", [np.zeros(51, np.int32), np.zeros((51, 2), np.float32)])
def test_a_column_of_something_else_holds_no_concepts(named: PairTable, values: Any) -> None:
    named.add_column("concepts", values, {"names": ["a"]})
    with pytest.raises(UserError, match="holds no concepts"):
        stored_names(named, "concepts")
    named.made["concepts"] = "something"
    with pytest.raises(UserError, match="holds no concepts"):
        stored_names(named, "concepts")
