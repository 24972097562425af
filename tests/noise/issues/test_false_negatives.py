"""Pairs that describe each other's images: all are found in a small table, nearly all in a large one."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_evidence import Unit, evidence
from torch.nn.functional import normalize

from truepair.noise import near
from truepair.noise.issues import false_negatives as module
from truepair.noise.issues.false_negatives import false_negative_group, find

SCALE = 20.0


def concepts(seed, n, kinds, dim=16, spread=0.25):
    """Unit image and text features of n pairs about `kinds` things."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(kinds, dim, generator=generator)[torch.arange(n) % kinds]
    return [normalize(centre + spread * torch.randn(n, dim, generator=generator), dim=1) for _ in range(2)]


def brute_force(image, text, same, known, scale):
    """(n, n) likeness, written out."""
    c = (image.double() @ text.double().T).numpy()
    n = len(c)
    likeness = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and not same[i, j] and known[i] and known[j]:
                likeness[i, j] = np.exp(min(0, scale * (min(c[i, j], c[j, i]) - max(c[i, i], c[j, j]))))
    return likeness


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 12), st.integers(2, 9))
def test_scores_and_groups_are_those_of_comparing_all_with_all(seed, n, kinds, block):
    image, text = concepts(seed, n, kinds)
    generator = np.random.default_rng(seed)
    number, p_noise = generator.integers(0, n, n), generator.choice([0.1, 0.9], n, p=[0.8, 0.2]).astype(np.float32)
    rows = np.sort(generator.permutation(2 * n)[:n])
    p_all, image_all = np.full(2 * n, np.nan, np.float32), np.arange(2 * n) + n
    p_all[rows], image_all[rows] = p_noise, number
    given = evidence(n=2 * n, p_noise=p_all, image=image_all, features=Unit(image, text, rows), scale=SCALE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = find(given, 0.5)
    known = p_noise < 0.5
    likeness = brute_force(image, text, number[:, None] == number, known, SCALE)
    edges = likeness >= 0.5
    best = np.where(edges.any(axis=1), likeness.max(axis=1), 0)
    np.testing.assert_allclose(found.score[rows], np.where(known, best, np.nan), atol=1e-4)
    assert np.isnan(np.delete(found.score, rows)).all() and (np.delete(found.group, rows) == -1).all()
    linked = edges.copy()
    for _ in range(n):
        linked |= linked @ linked
    for i in range(n):
        together = set(rows[np.flatnonzero(linked[i] | (np.arange(n) == i))]) if edges[i].any() else set()
        assert set(np.flatnonzero(found.group == found.group[rows[i]]) if found.group[rows[i]] >= 0 else []) == together


@pytest.mark.parametrize("hub", [0, 59])
def test_a_row_with_more_partners_than_are_kept_of_it_is_the_partner_of_each(hub, monkeypatch):
    n, near = 60, 50
    image = torch.eye(n)
    spokes = [row for row in range(n) if row != hub][5 : 5 + near] if hub == 0 else list(range(near))
    image[spokes] = normalize(image[spokes] + 4 * image[hub], dim=1)
    given = evidence(n=n, features=Unit(image, image, np.arange(n)), scale=SCALE)
    monkeypatch.setattr(module, "BLOCK", near)
    monkeypatch.setattr(module, "PARTNERS", 3)
    found = find(given, 0.5)
    together = [hub, *spokes]
    assert (found.score[together] >= 0.5).all() and (found.group[together] == found.group[hub]).all()
    assert (np.delete(found.score, together) < 0.5).all()


def test_rows_with_many_partners_cost_less_than_half_a_kilobyte_each(monkeypatch):
    n = 8000
    monkeypatch.setattr(module, "EXACT", 100)
    monkeypatch.setattr(near, "BLOCK", 256)
    one = normalize(torch.ones(n, 4), dim=1)
    given = evidence(n=n, features=Unit(one, one, np.arange(n)), scale=SCALE)
    tracemalloc.start()
    find(given, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500 * n


def test_in_a_large_table_nearly_all_are_found_within_blocks(monkeypatch):
    n, kinds = 4000, 800
    image, text = concepts(3, n, kinds, dim=32, spread=0.05)
    given = evidence(n=n, features=Unit(image, text, np.arange(n)), scale=SCALE)
    exact = find(given, 0.5)
    monkeypatch.setattr(module, "EXACT", 100)
    monkeypatch.setattr(near, "BLOCK", 256)
    quick = find(given, 0.5)
    flagged = exact.score >= 0.5
    assert flagged.mean() > 0.9 and (quick.score <= exact.score + 1e-5).all()
    assert (quick.score[flagged] >= 0.5).mean() > 0.97
    same = (quick.group[:, None] == quick.group) & (quick.group >= 0)
    assert (np.arange(n)[:, None] % kinds == np.arange(n) % kinds)[same].mean() > 0.99


def test_a_group_never_grows_beyond_its_cap(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 7)
    one = normalize(torch.ones(60, 4), dim=1)
    found = find(evidence(n=60, features=Unit(one, one, np.arange(60)), scale=SCALE), 0.5)
    assert found.score == pytest.approx(1) and np.bincount(found.group[found.group >= 0]).max() <= 7
    assert (found.group >= 0).mean() > 0.8


def test_without_features_the_reason_is_said():
    assert false_negative_group.lacks(evidence(n=3, without_features="gone")) == "gone"


def test_nothing_to_judge_is_no_group():
    given = evidence(
        n=2, p_noise=np.ones(2, np.float32), features=Unit(torch.ones(2, 2), torch.ones(2, 2), np.arange(2))
    )
    found = find(given, 0.5)
    assert np.isnan(found.score).all() and (found.group == -1).all()
