"""Zero-shot figures equal scikit-learn's, and class features equal open_clip's classifier."""

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from truepair.evaluate.classes import ImageClasses
from truepair.evaluate.features import image_features
from truepair.evaluate.zeroshot import class_features, zero_shot
from truepair.models.dual import create

COLOURS = ("red", "green", "blue", "yellow", "cyan", "black")


def data_set(files, labels, names=COLOURS):
    return ImageClasses("colours", names, ("{c}",), np.array(labels), files.__getitem__)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create("truepair-tiny").eval()


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_figures_equal_scikit_learns(tiny):
    """Random images through random towers, unbalanced classes, one class without an image."""
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 0, 0, 1, 2, 4, 5], size=60)
    files = [png(generator.integers(0, 255, (9, 9, 3), np.uint8)) for _ in labels]
    result = zero_shot(tiny, data_set(files, labels), batch_size=16)
    scores = image_features(tiny, files.__getitem__, 60).features @ class_features(tiny, COLOURS, ("{c}",)).T
    top5 = top_k_accuracy_score(labels, scores, k=5, labels=range(6))
    assert result.top1 == pytest.approx(np.mean(scores.argmax(dim=1).numpy() == labels))
    assert result.top5 == pytest.approx(top5)
    assert result.mean_per_class_recall == pytest.approx(balanced_accuracy_score(labels, scores.argmax(dim=1)))
    assert (result.n, result.classes) == (60, 6)


def test_class_features_equal_open_clips_classifier(tiny):
    names, templates = ["cat", "a much longer class name", "dog"], ["a photo of a {}.", "{}", "the {} in the snow"]
    tokenizer = open_clip.get_tokenizer("truepair-tiny")
    expected = open_clip.build_zero_shot_classifier(tiny.clip, tokenizer, names, templates)
    found = class_features(tiny, names, [template.replace("{}", "{c}") for template in templates])
    torch.testing.assert_close(found, expected.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, class_features(tiny, names, templates))


def test_a_model_that_sees_colours_names_them(model, square):
    files = [square(colour) for colour in COLOURS]
    result = zero_shot(model, data_set(files, range(6)))
    assert result.top1 == result.top5 == result.mean_per_class_recall == 1


def test_a_collapsed_model_scores_as_guessing_does(model, square):
    files = [square("red")] * 4
    result = zero_shot(model, data_set(files, [0, 0, 0, 2], names=("red", "red", "red", "red", "red", "red", "red")))
    assert (result.top1, result.top5) == pytest.approx((1 / 7, 5 / 7))


def test_fewer_than_five_classes_have_a_sure_top5(model, square):
    result = zero_shot(model, data_set([square("red")], [1], names=("red", "blue")))
    assert (result.top1, result.top5) == (0, 1)


def test_skipped_images_are_counted_and_json_has_clip_benchmarks_fields(model, square):
    result = zero_shot(model, data_set([square("red"), b"", square("blue")], [0, 1, 0]))
    assert result.n == 2 and result.skipped == {"empty image": 1}
    assert result.to_json() == {
        "dataset": "colours",
        "model": "colours",
        "pretrained": "",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "acc5": result.top5, "mean_per_class_recall": 0.5},
        "language": "en",
    }
