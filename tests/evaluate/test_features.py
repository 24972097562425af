"""Features keep the order of their rows, and what cannot be decoded is named and left out."""

import numpy as np
import pytest
import torch

from truepair.errors import UserError
from truepair.evaluate.features import image_features, reasons, text_features


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_named_and_the_others_keep_their_rows(model, square, workers):
    files = [square("red"), b"not an image", square("green"), b"", square("blue"), square("red")[:40]]
    done = []
    found = image_features(model, files.__getitem__, len(files), batch_size=2, workers=workers, progress=done.append)
    assert found.rows.tolist() == [0, 2, 4]
    assert found.skipped == [(1, "unreadable image"), (3, "empty image"), (5, "unreadable image")]
    assert reasons(found.skipped) == {"unreadable image": 2, "empty image": 1}
    assert found.features.argmax(dim=1).tolist() == [0, 1, 2]
    assert done == [2, 2, 2] and model.widest_batch <= 2


def test_a_vanished_file_is_skipped_by_name(model, square):
    def read(row: int) -> bytes:
        if row == 1:
            raise FileNotFoundError("gone")
        return square("red")

    assert image_features(model, read, 3).skipped == [(1, "missing or changed file")]


def test_nothing_decodable_is_an_error_that_counts_the_reasons(model):
    with pytest.raises(UserError, match="2 x empty image"):
        image_features(model, lambda row: b"", 2)


def test_texts_come_back_in_their_order_whatever_their_lengths(model):
    texts = ["a long sentence about something that is blue", "red", "some green here", "x blue", "red"]
    features = text_features(model, texts, batch_size=2)
    assert features.argmax(dim=1).tolist() == [2, 0, 1, 2, 0]
    with pytest.raises(UserError, match="no text"):
        text_features(model, [])


def test_the_model_gets_its_training_state_back_and_features_can_be_trained_on(model, square):
    model.train()
    found = image_features(model, lambda row: square("red"), 2)
    assert model.training and not found.features.is_inference()
    assert np.allclose(found.features.norm(dim=1), 1)
    weight = torch.ones(3, requires_grad=True)
    (found.features @ weight).sum().backward()


def test_a_part_that_was_at_rest_stays_so(model, square):
    model.trained, model.frozen = torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1).eval()
    image_features(model, lambda row: square("red"), 2)
    text_features(model, ["red"])
    assert model.training and model.trained.training and not model.frozen.training
