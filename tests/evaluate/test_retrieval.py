"""Retrieval over a pair table: identical images are one image, identical captions one text."""

import pytest
import torch

from truepair.errors import UserError
from truepair.evaluate.retrieval import retrieval


def test_several_captions_per_image_and_several_images_per_caption(model, make_table, square):
    table = make_table(
        [
            (square("red"), ["red", "a red thing"]),
            (square("red"), ["so red"]),  # the same image again
            (square("green"), ["green"]),
            (square("green", shift=1), ["green"]),  # the same caption again
            (square("blue"), ["yellow"]),  # a wrong caption
        ]
    )
    result = retrieval(model, table)
    assert (result.n_images, result.n_texts) == (4, 5)
    assert result.image_to_text == pytest.approx({1: 3 / 4, 5: 1, 10: 1})
    assert result.text_to_image == pytest.approx({1: 4 / 5, 5: 1, 10: 1})
    assert result.skipped == {}


def test_json_has_clip_benchmarks_fields(model, make_table, square):
    result = retrieval(model, make_table([(square("red"), ["red"]), (square("blue"), ["blue", "cyan"])]), ks=(1, 5))
    assert result.to_json("laion") == {
        "dataset": "table",
        "model": "colours",
        "pretrained": "laion",
        "task": "zeroshot_retrieval",
        "metrics": {
            "image_retrieval_recall@1": result.text_to_image[1],
            "image_retrieval_recall@5": result.text_to_image[5],
            "text_retrieval_recall@1": result.image_to_text[1],
            "text_retrieval_recall@5": result.image_to_text[5],
        },
        "language": "en",
    }


def test_bad_images_and_rows_without_captions_are_left_out_and_counted(model, make_table, square):
    table = make_table(
        [
            (square("red"), ["red"]),
            (b"broken", ["green", "red"]),
            (square("blue"), []),
            (square("cyan"), [""]),
            (square("black"), ["black"]),
        ]
    )
    result = retrieval(model, table)
    assert (result.n_images, result.n_texts) == (2, 2)  # "green" has no image left, "red" has
    assert result.skipped == {"no caption": 2, "unreadable image": 1}


def test_only_the_rows_and_captions_asked_for_take_part(model, make_table, square):
    table = make_table([(square(c), [c, f"very {c}"]) for c in ("red", "green", "blue", "cyan")])
    result = retrieval(model, table, rows=torch.tensor([3, 0]).numpy(), captions_per_image=1)
    assert (result.n_images, result.n_texts) == (2, 2)
    assert result.image_to_text[1] == result.text_to_image[1] == 1


def test_the_caption_column_in_force_is_the_one_searched(model, make_table, square):
    table = make_table([(square("red"), ["red"]), (square("green"), ["green"])])
    table.add_column("caption_swapped", [["green"], ["red"]], {})
    table.caption_column = "caption_swapped"
    assert retrieval(model, table).image_to_text[1] == 0


def test_a_table_without_captions_is_one_clear_line(model, make_table, square):
    with pytest.raises(UserError, match="no captions"):
        retrieval(model, make_table([(square("red"), [])]))
