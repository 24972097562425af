"""What single images find is what a full sort of the similarities says, and survives the way to a file and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.evaluate.examples import FILE, NEAREST, Retrieved, read_retrieved, retrieved, write_retrieved
from truepair.evaluate.ranks import positives


def found(count: int = 40, images: int = 50, texts: int = 60) -> tuple[list[Retrieved], torch.Tensor, np.ndarray]:
    torch.manual_seed(0)
    seen, read = F.normalize(torch.randn(images, 8)), F.normalize(torch.randn(texts, 8))
    own = np.random.default_rng(0).permutation(texts)
    right = positives(np.arange(texts) % images, own, images)
    rows = np.random.default_rng(1).permutation(1000)[:images]
    told = retrieved(seen, read, right, rows, [f"text {number}" for number in range(texts)], count)
    truth = np.zeros((images, texts), bool)
    truth[np.arange(texts) % images, own] = True
    return told, seen @ read.T, np.stack([rows, *truth.T])


def test_ranks_and_nearest_captions_are_those_of_the_sorted_similarities() -> None:
    told, scores, known = found()
    rows, truth = known[0], known[1:].T.astype(bool)
    assert len(told) == 40 and [one.row for one in told] == sorted(one.row for one in told)
    for one in told:
        image = int(np.flatnonzero(rows == one.row)[0])
        order = scores[image].argsort(descending=True).tolist()
        assert one.captions == tuple(f"text {number}" for number in order[:NEAREST])
        assert one.right == tuple(truth[image, order[:NEAREST]].tolist())
        assert one.rank == 1 + min(place for place, number in enumerate(order) if truth[image, number])


def test_fewer_images_and_captions_than_are_asked_for_are_told_as_they_are() -> None:
    told, _, _ = found(count=128, images=2, texts=2)
    assert len(told) == 2 and all(len(one.captions) == 2 for one in told)


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_a_model_that_tells_nothing_apart_or_has_no_numbers_finds_nothing(value: float) -> None:
    seen, read = F.normalize(torch.full((8, 4), value)), F.normalize(torch.full((9, 4), value))
    right = positives(np.arange(8), np.arange(8), 8)
    told = retrieved(seen, read, right, np.arange(8), [str(number) for number in range(9)], 8)
    assert [one.rank for one in told] == [9] * 8


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    told, _, _ = found()
    assert read_retrieved(tmp_path) is None
    write_retrieved(tmp_path, tmp_path / "table", told)
    assert read_retrieved(tmp_path) == (tmp_path / "table", told)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "damage",
    ["", "[]", '{"table": "t"}', '{"table": "t", "images": [1]}', '{"table": "t", "images": [{"row": "x"}]}'],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(UserError, match=r"retrieved\.json cannot be read"):
        read_retrieved(tmp_path)
    (tmp_path / FILE).write_text('{"table": "t", "images": [{"row": 1e999, "rank": 1, "captions": [], "right": []}]}')
    with pytest.raises(UserError, match=r"retrieved\.json cannot be read"):
        read_retrieved(tmp_path)
    one = {"row": 1, "rank": 1, "captions": ["a", "b"], "right": [True]}
    (tmp_path / FILE).write_text(json.dumps({"table": "t", "images": [one]}))
    with pytest.raises(UserError, match="as many captions as verdicts"):
        read_retrieved(tmp_path)
