"""One pass over the images gathers all that issues are looked for in."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from planted import encoded, picture, planted

from truepair.evaluate import features as features_module
from truepair.evaluate import noise as noise_module
from truepair.evaluate.evidence import evidence_of, second_table, see_table
from truepair.evaluate.features import image_features
from truepair.evaluate.noise import score_pairs
from truepair.noise.issues.looks import look
from truepair.pairs.image import decode_centre


@pytest.fixture
def table(make_table):
    return make_table(planted()[0])


def test_scores_are_those_of_score_pairs_and_every_image_is_decoded_once(model, table, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        features_module, "decode_centre", lambda data, *a, **how: decoded.append(data) or decode_centre(data, *a, **how)
    )
    seen = see_table(model, table, batch_size=32)
    assert len(decoded) == len(set(decoded)) == len(table)
    wanted = score_pairs(model, table)
    for name in ("cosine", "neg_clip_loss", "p_noise"):
        np.testing.assert_array_equal(getattr(seen.scores, name), getattr(wanted, name))
    assert seen.scores.skipped == wanted.skipped and seen.synthetic is None


def test_scores_do_not_depend_on_how_many_rows_are_put_together_at_once(model, table, monkeypatch):
    wanted = score_pairs(model, table, negatives=50)
    monkeypatch.setattr(noise_module, "ROWS_AT_ONCE", 7)
    found = score_pairs(model, table, negatives=50)
    np.testing.assert_allclose(found.neg_clip_loss, wanted.neg_clip_loss, atol=1e-6)
    np.testing.assert_allclose(found.cosine, wanted.cosine, atol=1e-6)


def test_looks_are_those_of_the_pixels_the_model_saw(model, make_table):
    import torch

    images = [encoded(picture(colour, i)) for i, colour in enumerate(("red", "green", "blue"))]
    table = make_table([(images[i], ["red"]) for i in (2, 0, 1, 0)] + [(b"broken", ["red"])])
    looks = see_table(model, table).looks
    pixels = torch.stack([torch.from_numpy(decode_centre(image, 8).copy()).permute(2, 0, 1) for image in images])
    hashed, colours, spread = look(pixels)
    assert looks.hash[:4].tolist() == hashed[[2, 0, 1, 0]].tolist()
    np.testing.assert_array_equal(looks.colours[:4], colours[[2, 0, 1, 0]])
    np.testing.assert_allclose(looks.spread[:4], spread[[2, 0, 1, 0]], rtol=1e-6)
    assert looks.seen.tolist() == [True] * 4 + [False]


def test_features_of_rows_are_put_together_as_asked(model, make_table, square):
    table = make_table([(square("red"), ["red", "blue"]), (b"broken", ["red"]), (square("red"), ["blue"])])
    rows = see_table(model, table).features
    assert rows.rows.tolist() == [0, 2]
    image, text = rows.of(np.array([1, 0, 1]))
    own = image_features(model, lambda row: square("red"), 1).features[0]
    red, blue = model.encode_text(model.tokenize(["red", "blue"]))
    mean = (red + blue) / (red + blue).norm()
    np.testing.assert_allclose(image, np.tile(own, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(text, np.stack([blue, mean, blue]), atol=1e-6)


def test_a_row_without_a_caption_has_a_sound_image(model, make_table, square):
    table = make_table([(square("red"), ["red"]), (square("blue"), []), (b"broken", [])])
    evidence = evidence_of(table, see_table(model, table), 20.0)
    assert evidence.undecodable.tolist() == [False, False, True]
    assert evidence.looks.seen.tolist() == [True, True, False] and np.isnan(evidence.cosine[1:]).all()


def test_an_image_whose_file_could_not_be_read_was_not_tried(model, make_table, square):
    table = make_table([(square("red"), ["red"]), (square("blue"), ["blue"]), (b"broken", ["red"])])
    (table.path / "images" / "1.png").unlink()
    evidence = evidence_of(table, see_table(model, table), 20.0)
    assert evidence.undecodable.tolist() == [False, False, True] and evidence.looks.seen.tolist() == [
        True,
        False,
        False,
    ]


def test_the_best_synthetic_caption_of_a_row_is_compared_with_its_image(model, make_table, square):
    table = make_table([(square("red"), ["blue"])] * 3 + [(b"broken", ["red"])])
    lists = [["blue", "red"], [], ["green"], ["red"]]
    table.add_column("synthetic", pa.array(lists, pa.list_(pa.string())), {})
    found = see_table(model, table)
    image = image_features(model, lambda row: square("red"), 1).features[0]
    red, green = model.encode_text(model.tokenize(["red", "green"]))
    assert found.synthetic[[0, 2]] == pytest.approx([float(image @ red), float(image @ green)], abs=1e-6)
    assert np.isnan(found.synthetic[[1, 3]]).all()
    table.add_column("synthetic", pa.array([[]] * 4, pa.list_(pa.string())), {})
    assert see_table(model, table).synthetic is None
    in_force = dataclasses.replace(table, caption_column="synthetic")
    in_force.add_column("synthetic", pa.array(lists, pa.list_(pa.string())), {})
    assert see_table(model, in_force).synthetic is None


def test_a_second_table_is_hashed_at_the_same_size_and_compared_by_bytes(model, make_table, tmp_path):
    images = [encoded(picture("red", seed)) for seed in range(4)]
    table = make_table([(image, ["red"]) for image in images])
    (tmp_path / "table").rename(tmp_path / "first")
    table = dataclasses.replace(table, path=tmp_path / "first")
    other = make_table([(images[2], []), (encoded(picture("red", 3), "JPEG"), []), (b"broken", []), (images[2], [])])
    second = second_table(model, table, other)
    assert second.same_bytes.tolist() == [False, False, True, False] and second.name == str(other.path)
    looks = see_table(model, table).looks
    assert len(second.looks) == 3 and second.looks.seen.sum() == 2
    assert second.to_json() == {"table": str(other.path), "images": 3, "unseen": {"unreadable image": 1}}
    assert looks.hash[2] in second.looks.hash[second.looks.seen]
