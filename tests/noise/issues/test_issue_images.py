"""Broken images, mismatched pairs, and what every issue has in common."""

import numpy as np
import pytest
from issue_evidence import evidence, looks_of

from truepair.noise import fit_losses
from truepair.noise.issues import ACTIONS, ISSUES
from truepair.noise.issues.broken import broken_image
from truepair.noise.issues.mismatch import mismatched_pair


def test_broken_blank_long_and_tiny_images_are_flagged():
    looks = looks_of(range(8))
    looks.spread[:] = [50, 50, 1.9, 2.1, 50, 50, 50, 50]
    looks.seen[[1, 7]] = False
    known = {
        "looks": looks,
        "undecodable": np.arange(8) == 1,
        "width": np.array([64, 64, 64, 64, 640, 600, 16, 64]),
        "height": np.array([64, 64, 64, 64, 64, 64, 400, 64]),
    }
    score = broken_image.find(evidence(n=8, **known), 0.5).score
    assert (score >= 0.5).tolist() == [False, True, True, False, True, False, True, False]
    assert score[1] == 1 and np.isnan(score[7]) and score[5] == pytest.approx(600 / 64 / (600 / 64 + 10))


def test_mismatched_pairs_are_those_of_high_p_noise():
    p_noise = np.array([0.1, 0.5, 0.9, np.nan], np.float32)
    found = mismatched_pair.find(evidence(n=4, p_noise=p_noise), 0.5)
    np.testing.assert_array_equal(found.score, p_noise)


def test_with_a_fusion_encoder_the_score_is_the_mean_of_two_mixtures_posteriors():
    generator = np.random.default_rng(0)
    odds = np.concatenate([generator.normal(-3, 1, 300), generator.normal(2, 1, 100)])
    itm = (1 / (1 + np.exp(odds))).astype(np.float32)
    itm[7] = np.nan
    p_noise = generator.random(400).astype(np.float32)
    given = evidence(n=400, p_noise=p_noise, itm=itm)
    score = mismatched_pair.find(given, 0.5).score
    posterior = fit_losses(odds.astype(np.float32)).posterior(odds.astype(np.float32))
    known = np.arange(400) != 7
    np.testing.assert_allclose(score[known], (p_noise + posterior)[known] / 2, atol=0.02)
    assert np.isnan(score[7])
    alone = mismatched_pair.find(evidence(n=400, p_noise=p_noise, itm=itm, no_noise_model="one mode"), 0.5).score
    np.testing.assert_allclose(alone[known], posterior[known], atol=0.02)


def test_without_a_noise_model_it_is_not_looked_for_and_labels_overrule_everything():
    itm = np.full(5, 0.3, np.float32)
    assert "one mode" in mismatched_pair.lacks(evidence(n=5, no_noise_model="one mode", itm=itm))
    right = np.linspace(0, 1, 5).astype(np.float32)
    given = evidence(n=5, no_noise_model="one mode", itm=itm, recalibrated=right)
    assert not mismatched_pair.lacks(given) and mismatched_pair.find(given, 0.5).score is right


def test_issues_have_the_fixed_names_and_say_whose_their_thresholds_are():
    assert [issue.name for issue in ISSUES] == [
        "mismatched_pair", "near_duplicate_image", "boilerplate_caption", "incomplete_caption", "false_negative_group",
        "wrong_language", "broken_image", "leaked_image",
    ]  # fmt: skip
    for issue in ISSUES:
        assert "ours" in issue.explanation or "arXiv" in issue.explanation
        assert 0 < issue.threshold <= 1 and issue.action in ACTIONS and issue.title and issue.score_says


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.name)
def test_issues_take_one_row_and_change_no_evidence(issue):
    given = evidence(n=1)
    before = repr(given)
    if not issue.lacks(given):
        found = issue.find(given, issue.threshold)
        assert found.score.shape == (1,) and found.score.dtype == np.float32
        assert (found.group is not None) == issue.grouped
        assert found.group is None or (found.group.dtype == np.int64 and found.group.shape == (1,))
    assert repr(given) == before
