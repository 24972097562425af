"""Feature columns hold what the encoders give, row by row; what cannot be encoded is zeros, counted and named."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from killable import in_processes
from torch import Tensor, nn
from torch.nn.functional import normalize

from truepair.annotate import reading
from truepair.annotate.embed import LOG, embed_table
from truepair.annotate.parts import Parts
from truepair.annotate.regions import BAD_BOX, MAX_BOXES, Boxes, Grid, regions_of
from truepair.cli.embed import Embed, embed, named_after
from truepair.errors import UserError
from truepair.pairs.image import Crop, decode_centre, decode_crop
from truepair.pairs.table import PairTable

SIZE = 8


class Eye(nn.Module):
    """Features of an image are its mean colours in three rows of pixels."""

    name, image_size, squash, device = "eye", SIZE, False, torch.device("cpu")

    def encode_image(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, SIZE, SIZE)
        return normalize(images[:, :, ::3].float().mean(3).flatten(1) - 100, dim=1)


class Ear(nn.Module):
    """Features of a text are how often it has each letter; it remembers what it was asked."""

    name, device = "ear", torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def tokenize(self, texts: list[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return normalize(tokens.float(), dim=1)


def eye_sees(pixels: np.ndarray) -> np.ndarray:
    return Eye().encode_image(torch.tensor(pixels).permute(2, 0, 1)[None])[0].numpy()


def ear_hears(texts: list[str]) -> np.ndarray:
    mean = np.mean([Ear().encode_text(Ear().tokenize([text]))[0].numpy() for text in texts], axis=0)
    return mean / np.linalg.norm(mean)


@pytest.fixture
def table(scenes: Path, tmp_path: Path) -> PairTable:
    """51 rows, free to change."""
    return PairTable.open(scenes / "test").derive(tmp_path / "table")


def skips(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_columns_hold_every_rows_features_whatever_the_batch(table: PairTable, tmp_path: Path, batch_size: int) -> None:
    result = embed_table(table, tmp_path / "out", "f", image=Eye(), text=Ear(), batch_size=batch_size)
    assert result.columns == {"f_image": (51, 9), "f_text": (51, 26)} and not result.skipped
    out = PairTable.open(tmp_path / "out")
    images, texts = out.numbers("f_image"), out.numbers("f_text")
    assert images.dtype == texts.dtype == np.float16 and images.shape == (51, 9)
    for row in range(51):
        np.testing.assert_allclose(images[row], eye_sees(decode_centre(table.image_bytes(row), SIZE)), atol=1e-3)
        np.testing.assert_allclose(texts[row], ear_hears(table.captions()[row]), atol=1e-3)
    assert out.made["f_image"]["model"] == "eye" and out.made["f_image"]["regions"] == "pooled"
    assert out.made["f_text"]["texts"] == "caption" and out.made["f_text"]["truepair"]


def test_a_grid_is_the_whole_image_then_its_cells_row_by_row(table: PairTable, tmp_path: Path) -> None:
    embed_table(table, tmp_path / "out", "f", image=Eye(), regions=Grid(2), batch_size=11)
    features = PairTable.open(tmp_path / "out").numbers("f_image")
    assert features.shape == (51, 5, 9)
    for row in (0, 7, 50):
        data = table.image_bytes(row)
        cells = [Crop(x, y, 0.5, 0.5) for y in (0, 0.5) for x in (0, 0.5)]
        wanted = [decode_centre(data, SIZE), *(decode_crop(data, SIZE, cell) for cell in cells)]
        np.testing.assert_allclose(features[row], [eye_sees(pixels) for pixels in wanted], atol=1e-3)


def add_boxes(table: PairTable, first: list[Any]) -> None:
    """The boxes of rows 0, 1, …; further rows have none."""
    rows = first + [[]] * (len(table) - len(first))
    table.add_column("boxes", pa.array(rows, pa.list_(pa.list_(pa.float32()))), {})


def test_boxes_are_padded_with_zeros_and_bad_ones_are_left_out_and_named(table: PairTable, tmp_path: Path) -> None:
    good, nan = [0.25, 0.0, 0.75, 0.5], float("nan")
    hostile = [[nan, 0, 1, 1], [0.5, 0.5, 0.5, 1], [0.9, 0, 0.1, 1], [2, 2, 3, 3], [-1e30, 0, float("inf"), 1], good]
    add_boxes(table, [[good], None, hostile, [[-5, -5, 5, 5]], []])
    result = embed_table(table, tmp_path / "out", "f", image=Eye(), regions=Boxes(table, "boxes"), batch_size=16)
    features = PairTable.open(tmp_path / "out").numbers("f_image")
    assert features.shape == (51, 1 + 6, 9)
    for row, boxes in (
        (0, [Crop(0.25, 0, 0.5, 0.5)]),
        (1, []),
        (2, [Crop(0.25, 0, 0.5, 0.5)]),
        (3, [Crop(0, 0, 1, 1)]),
    ):
        data = table.image_bytes(row)
        wanted = np.zeros((7, 9))
        views = [decode_centre(data, SIZE), *(decode_crop(data, SIZE, box) for box in boxes)]
        wanted[: len(views)] = [eye_sees(pixels) for pixels in views]
        np.testing.assert_allclose(features[row], wanted, atol=1e-3)
    assert result.skipped == {BAD_BOX: 1} and [line["row"] for line in skips(tmp_path / "out")] == [2]


@pytest.mark.parametrize("box", [pa.list_(pa.float32()), pa.list_(pa.float64(), 4)])
def test_a_null_box_is_left_out_like_any_bad_one(table: PairTable, box: pa.DataType) -> None:
    good = [0.25, 0.0, 0.75, 0.5]
    rows = [[good], None, [None, good], [good, [0, None, 1, 1]], [None], *([[]] * 46)]
    table.add_column("boxes", pa.array(rows, pa.list_(box)), {})
    boxes, crop = Boxes(table, "boxes"), Crop(0.25, 0, 0.5, 0.5)
    assert boxes.count == 1 + 2
    assert [boxes.crops(row) for row in range(6)] == [
        ([crop], False),
        ([], False),
        ([crop], True),
        ([crop], True),
        ([], True),
        ([], False),
    ]


def test_more_boxes_than_the_limit_are_left_out(table: PairTable) -> None:
    add_boxes(table, [[[0.0, 0.0, 1.0, 1.0]] * 5_000])
    boxes = Boxes(table, "boxes")
    assert boxes.count == 1 + MAX_BOXES
    assert len(boxes.crops(0)[0]) == MAX_BOXES


def test_columns_that_hold_no_boxes_are_refused(table: PairTable) -> None:
    table.add_column("three", pa.array([[[0.0, 0.0, 1.0]]] * 51), {})
    table.add_column("words", pa.array([[["a", "b", "c", "d"]]] * 51), {})
    table.add_column("none", pa.array([None] * 51, pa.list_(pa.list_(pa.float64()))), {})
    for column in ("three", "words", "caption", "width", "key"):
        with pytest.raises(UserError, match="does not hold lists of boxes"):
            Boxes(table, column)
    with pytest.raises(UserError, match="no box in any row"):
        Boxes(table, "none")
    with pytest.raises(UserError, match="no column 'absent'"):
        Boxes(table, "absent")
    with pytest.raises(UserError, match="go together"):
        regions_of(table, "boxes", grid=3, boxes="")
    with pytest.raises(UserError, match="--grid 0"):
        regions_of(table, "grid", grid=0, boxes="")


def test_tags_are_the_texts_of_a_row_and_rows_without_any_are_zeros(table: PairTable, tmp_path: Path) -> None:
    tags = [["red", "cat"], [], ["red", " "], None, *([["dog"]] * 47)]
    table.add_column("tags", pa.array(tags, pa.list_(pa.string())), {})
    ear = Ear()
    result = embed_table(table, tmp_path / "out", "f", text=ear, captions="tags")
    features = PairTable.open(tmp_path / "out").numbers("f_text")
    for row, texts in ((0, ["red", "cat"]), (2, ["red"]), (4, ["dog"])):
        np.testing.assert_allclose(features[row], ear_hears(texts), atol=1e-3)
    assert not features[[1, 3]].any()
    assert result.skipped == {"no text": 2}
    assert sorted(ear.asked) == ["a", "cat", "dog", "red"], "each distinct tag is encoded once; 'a' is asked for D"


def test_more_distinct_texts_than_are_kept_give_the_same_column(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_table(table, tmp_path / "once", "f", text=Ear())
    monkeypatch.setattr(reading, "VOCABULARY", 3)
    embed_table(table, tmp_path / "by chunks", "f", text=Ear())
    once, chunked = (PairTable.open(tmp_path / name).numbers("f_text") for name in ("once", "by chunks"))
    np.testing.assert_array_equal(once, chunked)


def test_images_that_cannot_be_read_and_features_that_are_not_finite_are_zeros(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "test", tmp_path / "copy")
    table = PairTable.open(tmp_path / "copy")
    shard = table.source_path(0)
    data = bytearray(shard.read_bytes())
    start, size = int(table.numbers("offset")[5]), int(table.numbers("size")[5])
    data[start : start + size] = b"x" * size
    shard.write_bytes(data)

    class Faulty(Eye):
        def encode_image(self, images: Tensor) -> Tensor:
            return torch.where(torch.arange(len(images))[:, None] == 3, float("nan"), super().encode_image(images))

    result = embed_table(table, tmp_path / "out", "f", image=Faulty(), regions=Grid(1), batch_size=1000)
    features = PairTable.open(tmp_path / "out").numbers("f_image")
    empty = ~features.any(axis=(1, 2))
    assert np.flatnonzero(empty).tolist() == [1, 5]  # view 3 is row 1's cell
    assert result.skipped == {"features not finite": 1, "unreadable image": 1}
    assert [(line["row"], line["key"]) for line in skips(tmp_path / "out")] == [
        (row, table.strings("key")[row]) for row in (1, 5)
    ]
    assert np.isfinite(features).all()

    embed_table(table, tmp_path / "again", "f", image=Eye(), batch_size=4)
    features = PairTable.open(tmp_path / "again").numbers("f_image")
    wanted = [eye_sees(decode_centre(table.image_bytes(row), SIZE)) if row != 5 else np.zeros(9) for row in range(51)]
    np.testing.assert_allclose(features, wanted, atol=1e-3)


def test_a_table_whose_images_are_gone_is_an_error_not_a_column_of_zeros(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "test", tmp_path / "copy")
    for shard in (tmp_path / "copy" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match=r"no image of the first 51 rows .* missing or changed file"):
        embed_table(PairTable.open(tmp_path / "copy"), tmp_path / "out", "f", image=Eye())
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_there_needs_overwrite(table: PairTable, tmp_path: Path) -> None:
    embed_table(table, tmp_path / "one", "f", text=Ear())
    one = PairTable.open(tmp_path / "one")
    with pytest.raises(UserError, match="has a column 'f_text' already"):
        embed_table(one, tmp_path / "two", "f", text=Ear())
    embed_table(one, tmp_path / "two", "f", text=Ear(), captions="caption", overwrite=True)
    assert PairTable.open(tmp_path / "two").column_names.count("f_text") == 1


class Tinted(Eye):
    """An eye with a weight, and a buffer that is not saved."""

    def __init__(self, weight: float = 1.0, buffer: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.bfloat16))
        self.register_buffer("mean", torch.tensor([buffer]), persistent=False)


def test_a_pass_is_not_gone_on_with_over_other_inputs(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_boxes(table, [[[0.0, 0.0, 1.0, 0.5]]])
    table.add_column("tags", pa.array([["red", "cat"]] * 51), {})

    def start(out: str, image: Eye, at: PairTable = table) -> None:
        embed_table(at, tmp_path / out, "f", image=image, text=Ear(), captions="tags", regions=Boxes(at, "boxes"))

    start("whole", Tinted())
    with monkeypatch.context() as killed:
        killed.setattr(Parts, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start("out", Tinted())
    for other in (Tinted(weight=1.5), Tinted(buffer=1.5)):
        with pytest.raises(UserError, match=r"begun with f_image\.weights '\w+' \(now '\w+'\); go on with that"):
            start("out", other)

    tags, boxes = (table.path / "columns" / f"{name}.parquet" for name in ("tags", "boxes"))
    kept = tags.read_bytes(), boxes.read_bytes()
    table.add_column("tags", pa.array([["red", "cat"]] * 50 + [["redcat"]]), {})
    with pytest.raises(UserError, match=r"begun with f_text\.content\.tags '\w+' \(now '\w+'\); go on"):
        start("out", Tinted(), PairTable.open(table.path))
    tags.write_bytes(kept[0])
    add_boxes(table, [[], [[0.0, 0.0, 1.0, 0.5]]])
    with pytest.raises(UserError, match=r"begun with f_image\.content\.boxes '\w+' \(now '\w+'\); go on"):
        start("out", Tinted(), PairTable.open(table.path))
    boxes.write_bytes(kept[1])
    table.add_column("unread", np.zeros(51), {})
    start("out", Tinted(), PairTable.open(table.path))
    for name in ("f_image", "f_text"):
        columns = [(tmp_path / out / "columns" / f"{name}.parquet").read_bytes() for out in ("out", "whole")]
        assert columns[0] == columns[1]


# -- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    from truepair.models import create, save_local_dir

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "towers"
    save_local_dir(create("truepair-test"), folder)
    return f"local-dir:{folder}"


def test_the_verb_gives_what_evaluation_computes_with_the_same_model(scenes: Path, towers: str, tmp_path: Path) -> None:
    from truepair.evaluate.features import image_features
    from truepair.models import open_model

    args = Embed(scenes / "test", model=towers, out=tmp_path / "out", workers=2, batch_size=16)
    result = embed(args)
    table = PairTable.open(tmp_path / "out")
    assert set(result["columns"]) == {"towers_image", "towers_text"}
    wanted = image_features(open_model(towers), table.image_bytes, len(table)).features.numpy()
    np.testing.assert_allclose(table.numbers("towers_image"), wanted, atol=1e-3)


def test_flags_that_do_not_go_together_are_one_clear_line(scenes: Path, towers: str, tmp_path: Path) -> None:
    for flags, words in (
        ({"what": "text", "regions": "grid"}, "which are not to be encoded"),
        ({"what": "image", "captions": "caption"}, "which are not to be encoded"),
        ({"boxes": "caption"}, "go together"),
        ({"captions": "key"}, "does not hold lists"),
        ({"name": "../x"}, "column name"),
    ):
        with pytest.raises(UserError, match=words):
            embed(Embed(scenes / "test", model=towers, out=tmp_path / "out", workers=0, **flags))
    with pytest.raises(UserError, match="cannot encode texts; see --what"):
        save = tmp_path / "w.pth"
        torch.save(__import__("timm").create_model("test_vit").state_dict(), save)
        embed(Embed(scenes / "test", model=f"timm:test_vit:{save}", out=tmp_path / "out", what="both"))


def test_columns_are_named_after_the_model(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    for model, name in {
        "open_clip:ViT-B-16:openai": "ViT-B-16",
        "timm:resnet50.a1_in1k": "resnet50.a1_in1k",
        "timm:vit_small:/weights/w.pth": "vit_small",
        f"timm:{tmp_path / 'my run'}": "my-run",
        "local-dir:/models/towers/": "towers",
        "sentence-transformers:all-MiniLM-L6-v2": "all-MiniLM-L6-v2",
        "runs/2026-11": "model-2026-11",
    }.items():
        assert named_after(model) == name


def test_killed_and_gone_on_with_by_two_ranks_is_as_undisturbed(scenes: Path, towers: str, tmp_path: Path) -> None:
    def columns_of(name: str) -> list[bytes]:
        return [(tmp_path / name / "columns" / f"f_{kind}.parquet").read_bytes() for kind in ("image", "text")]

    args = Embed(scenes / "test", model=towers, out=tmp_path / "whole", name="f", regions="grid", grid=2, workers=1)
    assert in_processes(embed, args, 29571) == [0]
    killed = dataclasses.replace(args, out=tmp_path / "killed")
    assert in_processes(embed, killed, 29571, die_after=1) == [-signal.SIGKILL]
    assert not killed.out.exists()
    assert in_processes(embed, killed, 29571, world=2) == [0, 0]
    assert columns_of("killed") == columns_of("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
