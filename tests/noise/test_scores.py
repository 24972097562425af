"""The scores of a pair equal their formulas, written out over whole matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from scipy.special import logsumexp
from torch.nn.functional import normalize

from truepair.noise import scores as module
from truepair.noise.scores import cosine, neg_clip_loss


def features(n, seed, dim=7):
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 50), st.floats(1, 100), st.integers(0, 1000))
def test_neg_clip_loss_equals_the_formula_over_the_sample(n, negatives, scale, seed):
    image, text = features(n, seed), features(n, seed + 1)
    found = neg_clip_loss(image, text, scale, negatives=negatives, seed=seed).numpy()
    sample = module.sampled(n, negatives, seed)
    assert len(set(sample)) == min(n, negatives)
    c = (image.double() @ text.double().T).numpy()
    for i in range(n):
        others = [j for j in sample if j != i]
        both = [logsumexp(scale * np.append(row, c[i, i])) for row in (c[i, others], c[others, i])]
        assert found[i] == pytest.approx(c[i, i] - sum(both) / (2 * scale), abs=1e-5)


def test_with_all_pairs_as_negatives_its_mean_is_open_clips_loss():
    image, text = features(60, 1), features(60, 2)
    expected = ClipLoss()(image, text, torch.tensor(14.0))
    assert -14.0 * neg_clip_loss(image, text, 14.0).mean() == pytest.approx(float(expected), abs=1e-5)


def test_chunks_change_nothing(monkeypatch):
    image, text = features(50, 1), features(50, 2)
    whole = neg_clip_loss(image, text, 20.0, negatives=13), cosine(image, text)
    monkeypatch.setattr(module, "CHUNK", 7)
    pieces = neg_clip_loss(image, text, 20.0, negatives=13), cosine(image, text)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b)


def test_of_two_equal_cosines_the_caption_that_fits_every_image_scores_lower():
    image = torch.eye(4, 5)
    text = 0.5 * image + 0.75**0.5 * torch.eye(5)[4]
    text[1] = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0])
    cosines, scores = cosine(image, text), neg_clip_loss(image, text, 20.0)
    assert cosines.tolist() == pytest.approx([0.5] * 4)
    assert scores[1] < scores[[0, 2, 3]].min() - 0.01 and scores.max() <= 0
