"""Concept columns name what a dual encoder finds nearest to an image; what cannot be seen is -1, counted and named."""

import dataclasses
import importlib.util
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from killable import in_processes

from truepair.annotate.concepts import LOG, NO_FEATURES
from truepair.annotate.parts import Parts
from truepair.cli.concepts import Concepts, concepts
from truepair.cli.embed import Embed, embed
from truepair.errors import UserError
from truepair.evaluate.features import image_features
from truepair.models import create, open_model, save_local_dir
from truepair.models.concepts import ConceptBank
from truepair.pairs.table import PairTable

NAMES = ["circle", "square", "triangle", "sky", "ice cream", "dog"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "towers"
    save_local_dir(create("truepair-test"), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def listed(tmp_path: Path) -> str:
    file = tmp_path / "things.txt"
    file.write_text("\n".join([*NAMES[:3], "", "  ", NAMES[0], *NAMES[3:]]))
    return str(file)


def nearest(table: PairTable, towers: str, names: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of a whole sort over the model's own features."""
    model = open_model(towers)
    bank = ConceptBank(names, model.config["embed_dim"])
    bank.refresh(model)
    seen = image_features(model, table.image_bytes, len(table)).features
    cosines = (seen @ bank.features.T).numpy()
    ids = np.argsort(-cosines, axis=1)[:, :k]
    return ids, np.take_along_axis(cosines, ids, 1)


def test_the_verb_writes_the_nearest_names_of_a_list(scenes: Path, towers: str, listed: str, tmp_path: Path) -> None:
    args = Concepts(scenes / "test", model=towers, out=tmp_path / "out", list=listed, k=4, workers=2, batch_size=16)
    result = concepts(args)
    out = PairTable.open(tmp_path / "out")
    ids, scores = out.numbers("concepts"), out.numbers("concepts_score")
    assert (ids.dtype, scores.dtype, ids.shape) == (np.int32, np.float16, (51, 4))
    wanted, cosines = nearest(out, towers, NAMES, 4)
    np.testing.assert_allclose(scores, cosines, atol=2e-3)
    assert (ids == wanted).mean() > 0.95, "but for ties within float16"
    assert out.made["concepts"]["names"] == NAMES and out.made["concepts"]["source"] == "of things.txt"
    assert (tmp_path / "out" / "concepts.txt").read_text().splitlines() == NAMES
    assert result["columns"] == {"concepts": (51, 4), "concepts_score": (51, 4)}
    assert result["concepts"] == 6 and result["compared"] == 51 and not result["skipped"]


def test_k_beyond_the_list_is_padded(scenes: Path, towers: str, listed: str, tmp_path: Path) -> None:
    for search in ["torch"] + ["faiss"] * bool(importlib.util.find_spec("faiss")):
        out = tmp_path / search
        concepts(Concepts(scenes / "test", model=towers, out=out, list=listed, k=8, name="c", search=search, workers=0))
        table = PairTable.open(out)
        assert (table.numbers("c")[:, 6:] == -1).all() and np.isnan(table.numbers("c_score")[:, 6:]).all()
        assert (np.sort(table.numbers("c")[:, :6]) == np.arange(6)).all()


@pytest.mark.skipif(
    not (importlib.util.find_spec("textblob") and importlib.util.find_spec("lemminflect")), reason="no word lists"
)
def test_without_a_list_the_captions_nouns_are_the_concepts(scenes: Path, towers: str, tmp_path: Path) -> None:
    concepts(Concepts(scenes / "test", model=towers, out=tmp_path / "out", most=5, workers=0))
    names = PairTable.open(tmp_path / "out").made["concepts"]["names"]
    lists = PairTable.open(scenes / "test").captions()
    captions = " ".join(caption for row in range(51) for caption in lists[row])
    assert len(names) == 5 and all(name in captions for name in names)
    with pytest.raises(UserError, match="no English noun is in 1000000 captions"):
        concepts(Concepts(scenes / "test", model=towers, out=tmp_path / "none", least=1_000_000, workers=0))


def test_stored_features_give_what_encoding_gives(scenes: Path, towers: str, listed: str, tmp_path: Path) -> None:
    for regions in ("pooled", "grid"):
        stored, named = tmp_path / regions, tmp_path / f"{regions}-named"
        embed(Embed(scenes / "test", model=towers, out=stored, name="f", what="image", regions=regions, workers=0))
        concepts(Concepts(stored, model=towers, out=named, features="f_image", list=listed, k=3, workers=0))
    concepts(Concepts(scenes / "test", model=towers, out=tmp_path / "seen", list=listed, k=3, workers=0))
    seen = PairTable.open(tmp_path / "seen").numbers("concepts_score")
    for name in ("pooled-named", "grid-named"):
        found = PairTable.open(tmp_path / name).numbers("concepts_score")
        np.testing.assert_allclose(found, seen, atol=2e-3)


def test_faiss_finds_the_same(scenes: Path, towers: str, listed: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for search in ("torch", "faiss"):
        out = tmp_path / search
        concepts(Concepts(scenes / "test", model=towers, out=out, list=listed, k=3, search=search, workers=0))
    one, other = (PairTable.open(tmp_path / search).numbers("concepts_score") for search in ("torch", "faiss"))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_without_faiss_the_error_says_what_to_install(
    scenes: Path, towers: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'truepair\[faiss\]'"):
        concepts(Concepts(scenes / "test", model=towers, out=tmp_path / "out", list=listed, search="faiss", workers=0))


def test_features_that_do_not_fit_are_refused(scenes: Path, towers: str, listed: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_local_dir(create("truepair-test"), tmp_path / "other")
    embed(Embed(scenes / "test", model=f"local-dir:{tmp_path / 'other'}", out=tmp_path / "f", name="f", workers=0))
    args = Concepts(tmp_path / "f", model=towers, out=tmp_path / "out", list=listed, workers=0)
    for column, words in (
        ("f_image", "was made by .*other, with other weights"),
        ("width", "not features of"),
        ("caption", "holds text"),
        ("absent", "no column 'absent'"),
    ):
        with pytest.raises(UserError, match=words):
            concepts(dataclasses.replace(args, features=column))
    assert not (tmp_path / "out").exists()


def test_rows_without_an_image_have_no_concept_and_are_named(
    scenes: Path, towers: str, listed: str, tmp_path: Path
) -> None:
    shutil.copytree(scenes / "test", tmp_path / "copy")
    table = PairTable.open(tmp_path / "copy")
    shard = table.source_path(0)
    data = bytearray(shard.read_bytes())
    start, size = int(table.numbers("offset")[5]), int(table.numbers("size")[5])
    data[start : start + size] = b"x" * size
    shard.write_bytes(data)
    result = concepts(Concepts(table.path, model=towers, out=tmp_path / "out", list=listed, k=2, workers=0))
    out = PairTable.open(tmp_path / "out")
    assert (out.numbers("concepts") == -1).any(axis=1).nonzero()[0].tolist() == [5]
    assert np.isnan(out.numbers("concepts_score")[5]).all()
    assert result["skipped"] == {"unreadable image": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert [(line["row"], line["key"]) for line in lines] == [(5, table.strings("key")[5])]

    features = np.random.default_rng(0).standard_normal((51, open_model(towers).config["embed_dim"]))
    features[[3, 7]] = [[0], [np.nan]]
    table.add_column("given", features, {})
    args = Concepts(table.path, model=towers, out=tmp_path / "two", list=listed, features="given", k=2)
    assert concepts(args)["skipped"] == {NO_FEATURES: 1, "features not finite": 1}


def test_flags_and_lists_that_make_no_sense_are_one_clear_line(
    scenes: Path, towers: str, listed: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for flags, words in (
        ({"list": str(empty)}, "holds no concept"),
        ({"k": 0}, "k = 0"),
        ({"k": -3}, "k = -3"),
        ({"name": "../x"}, "column name"),
        ({"list": "", "least": 0}, "--most and --least"),
        ({"list": "", "captions": "key"}, "does not hold lists"),
        ({"model": "timm:test_vit.r160_in1k"}, "timm"),
        ({"model": "open_clip:ViT-B-32"}, "has no weights"),
    ):
        with pytest.raises(UserError, match=words) as error:
            concepts(
                Concepts(**{"table": scenes / "test", "model": towers, "list": listed, "out": tmp_path / "o"} | flags)
            )
        assert "\n" not in str(error.value)


def test_a_pass_is_not_gone_on_with_for_other_concepts(
    scenes: Path, towers: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Concepts(scenes / "test", model=towers, out=tmp_path / "out", list=listed, workers=0)
    monkeypatch.setattr(Parts, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        concepts(args)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"thing {i}] (now [" for i in range(10_000)))
    with pytest.raises(UserError, match=r"begun with concepts\.vocabulary '\w+' .*go on with that, or") as error:
        concepts(dataclasses.replace(args, list=str(other)))
    assert len(str(error.value)) < 1_000 and "thing 9" not in str(error.value)


def test_killed_and_gone_on_with_by_two_ranks_is_as_undisturbed(
    scenes: Path, towers: str, listed: str, tmp_path: Path
) -> None:
    def columns_of(out: Path) -> list[bytes]:
        return [(out / "columns" / f"{name}.parquet").read_bytes() for name in ("concepts", "concepts_score")]

    whole = Concepts(scenes / "test", model=towers, out=tmp_path / "whole", list=listed, k=3, workers=1)
    assert in_processes(concepts, whole, 29573) == [0]
    killed = dataclasses.replace(whole, out=tmp_path / "killed")
    assert in_processes(concepts, killed, 29573, die_after=1) == [-signal.SIGKILL]
    assert not killed.out.exists()

    assert in_processes(concepts, killed, 29573, world=2) == [0, 0]
    assert columns_of(killed.out) == columns_of(whole.out)
    assert (killed.out / "concepts.txt").read_text() == (whole.out / "concepts.txt").read_text()
