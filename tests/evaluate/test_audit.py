"""An audit scores every pair; with the truth known, noise detection says how well."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from truepair.errors import UserError
from truepair.evaluate.audit import audit
from truepair.evaluate.features import image_features
from truepair.evaluate.noise import noise_detection, score_pairs
from truepair.models.dual import create

COLOURS = ("red", "green", "blue", "yellow", "cyan", "black")


@pytest.fixture
def noisy(make_table, square):
    """120 pairs, every third with the caption of another colour; one broken image, one row without caption."""
    pairs, truth = [], []
    for i in range(120):
        wrong = i % 3 == 0
        pairs.append((square(COLOURS[i % 6], shift=i // 6), [COLOURS[(i + 2 * wrong) % 6]]))
        truth.append(wrong)
    pairs += [(b"broken", ["red"]), (square("red"), [])]
    table = make_table(pairs)
    table.add_column("is_noise", np.array([*truth, False, False]), {})
    return table


def test_mismatched_pairs_are_found_and_ranked_first(model, noisy, tmp_path):
    result = audit(model, noisy, tmp_path / "audit")
    truth = np.arange(120) % 3 == 0
    assert set(result.worst(40)) == set(np.flatnonzero(truth)) and len(result.worst(1000)) == 120
    assert result.figures.auroc == roc_auc_score(truth, -result.scores.neg_clip_loss[:120]) == 1
    assert result.n == 120 and result.expected_noise == pytest.approx(40, abs=6)
    assert result.skipped == {"unreadable image": 1, "no caption": 1}
    json.dumps(result.to_json())


def test_the_file_has_a_row_for_every_pair_and_says_why_one_has_no_score(model, noisy, tmp_path):
    result = audit(model, noisy, tmp_path / "audit")
    table = pq.read_table(result.file)
    assert result.file == tmp_path / "audit" / "audit.parquet"
    assert table.column_names == [
        "row", "key", "cosine", "neg_clip_loss", "p_noise", "problem", "caption", "is_noise"
    ]  # fmt: skip
    assert table.num_rows == 122 and table["key"][121].as_py() == "k121" and table["caption"][1].as_py() == ["green"]
    assert table["problem"].to_pylist() == [""] * 120 + ["unreadable image", "no caption"]
    for name in ("cosine", "neg_clip_loss", "p_noise"):
        assert table[name].to_pylist()[120:] == [None, None] and table[name].null_count == 2


def test_noise_detection_equals_scikit_learn_on_the_scored_rows(model, noisy):
    scores = score_pairs(model, noisy)
    truth = noisy.numbers("is_noise")[:120]
    result = noise_detection(model, noisy, scores=scores)
    assert result.figures.average_precision == pytest.approx(
        average_precision_score(truth, -scores.neg_clip_loss[:120])
    )
    assert result.figures.n == 120 and result.figures.rate == pytest.approx(1 / 3)
    fields = result.to_json()
    assert fields["task"] == "noise_detection" and set(fields["metrics"]) == {
        "auroc", "average_precision", "ece", "precision_at_rate"
    }  # fmt: skip
    assert noise_detection(model, noisy) == result


def test_a_row_is_scored_by_the_mean_of_its_captions(model, make_table, square):
    table = make_table([(square("red"), ["red", "blue"]), (square("red", 1), ["red blue"]), (square("black"), ["red"])])
    cosine = score_pairs(model, table).cosine
    mean = model.encode_text(model.tokenize(["red", "blue"])).mean(dim=0)
    first = image_features(model, lambda row: square("red"), 1).features[0]
    assert cosine[0] == pytest.approx(float(first @ mean / mean.norm()), abs=1e-6)
    assert cosine[2] < cosine[0]


def test_without_a_truth_column_an_audit_has_no_figures_and_detection_says_so(model, make_table, square, tmp_path):
    table = make_table([(square(colour), [colour]) for colour in COLOURS])
    result = audit(model, table, tmp_path)
    assert result.figures is None and "is_noise" not in pq.read_table(result.file).column_names
    assert result.scores.mixture.degenerate and (result.scores.p_noise == 0).all()
    with pytest.raises(UserError, match="is_noise"):
        noise_detection(model, table)


def test_a_diverged_model_is_one_clear_line(model, noisy, monkeypatch):
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda images: encode(images) * float("nan"))
    with pytest.raises(UserError, match="not finite"):
        score_pairs(model, noisy)


def test_a_real_model_audits_and_the_scale_is_its_own(noisy, tmp_path):
    tiny = create("truepair-tiny")
    found = audit(tiny, noisy, tmp_path, batch_size=64).scores
    again = score_pairs(tiny, noisy, scale=float(tiny.scale.detach()))
    assert tiny.training and np.isfinite(found.neg_clip_loss[:120]).all()
    np.testing.assert_allclose(found.neg_clip_loss, again.neg_clip_loss, atol=1e-5)
