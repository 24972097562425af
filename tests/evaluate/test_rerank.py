"""Re-ranking: the dual encoder's nearest keys, in the order of the fusion encoder's verdicts alone."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_matchers import live_matcher, save_run
from torch.nn.functional import normalize

from truepair.cli import main
from truepair.errors import UserError
from truepair.evaluate import rerank as rerank_module
from truepair.evaluate.ranks import positives
from truepair.evaluate.rerank import Reranked, halved, nearest, reranked_recall
from truepair.evaluate.retrieval import retrieval
from truepair.pairs.image import decode_centre

COLOURS = ("red", "green", "blue", "yellow", "cyan", "black")


@pytest.fixture(scope="module")
def matcher():
    return live_matcher()


@pytest.fixture
def table(make_table, square):
    """Nine images with one to three captions, some shared; a broken one, one of two rows, one without captions."""
    pairs = [(square(c, shift), [f"a {c} thing"]) for shift in (0, 20) for c in COLOURS[:4]]
    pairs[0] = (pairs[0][0], ["a red thing", "very red!", ""])
    pairs += [
        (square("cyan"), ["something of cyan, beside nothing at all"]),
        (square("cyan"), ["a cyan one"]),
    ]
    bad = [(square("black"), []), (b"broken", ["a red thing", "lost"]), (square("black", 9), [""])]
    pairs = [bad[0], *pairs[:3], *bad[1:], *pairs[3:]]
    return make_table(pairs)


def everything(matcher, table):
    """Images and texts that take part, (I, T) cosines, (I, T) log-odds of tokens rounded to float16, who belongs."""
    images, belongs = {}, {}
    for row in range(len(table)):
        data = table.image_bytes(row)
        texts = [text for text in table.captions()[row] if text]
        if texts and data != b"broken":
            images.setdefault(data, len(images))
            belongs.setdefault(images[data], set()).update(texts)
    texts = sorted(set.union(*belongs.values()))
    pixels = torch.from_numpy(np.stack([decode_centre(data, 32) for data in images])).permute(0, 3, 1, 2)
    features, cells = matcher.see_both(pixels)
    tokens = matcher.towers.tokenize(texts)
    hidden, attended = matcher.read(tokens)
    matcher.towers.eval()
    cosines = (features @ matcher.towers.encode_text(tokens).T).detach().numpy()
    matcher.towers.train()
    odds = torch.stack(
        [
            matcher.logits(hidden.half().float(), attended, cell.half().float().expand(len(texts), -1, -1)).diff()[:, 0]
            for cell in cells
        ]
    ).numpy()
    return cosines, odds, np.array([[text in belongs[i] for text in texts] for i in range(len(images))])


def recalls(cosines, odds, belongs, count, k):
    """Recall@k of queries (rows): of the `count` nearest, in the order of `odds`, is one of the first k right?"""
    found = []
    for query in range(len(cosines)):
        near = np.argsort(-cosines[query])[:count]
        ranked = near[np.argsort(-odds[query][near])]
        found.append(belongs[query][ranked[:k]].any())
    return np.mean(found)


@pytest.mark.parametrize("count", [1, 3, 5, 1000])
@pytest.mark.parametrize("step", [2, 256])
def test_recall_is_that_of_the_whole_matrix_of_verdicts(matcher, table, count, step, monkeypatch):
    monkeypatch.setattr(rerank_module, "CPU_PAIRS", step)
    cosines, odds, belongs = everything(matcher, table)
    assert np.diff(np.sort(odds.ravel())).min() > 1e-4 and odds.std(axis=0).min() > 0.01  # no ties, and it looks
    found = retrieval(matcher, table, candidates=count, ks=(1, 2, 3), batch_size=4).reranked
    for k in (1, 2, 3):
        assert found.image_to_text[k] == pytest.approx(recalls(cosines, odds, belongs, count, k))
        assert found.text_to_image[k] == pytest.approx(recalls(cosines.T, odds.T, belongs.T, count, k))


def test_one_candidate_leaves_the_dual_encoders_first_and_nothing_else(matcher, table):
    result = retrieval(matcher, table, candidates=1)
    plain = retrieval(matcher.towers, table)
    assert result.image_to_text == plain.image_to_text and result.text_to_image == plain.text_to_image
    assert set(result.reranked.image_to_text.values()) == {plain.image_to_text[1]}
    assert set(result.reranked.text_to_image.values()) == {plain.text_to_image[1]}
    assert result.skipped == {"no caption": 2, "unreadable image": 1}
    assert plain.reranked is None and (result.n_images, result.n_texts) == (9, 7)


def test_both_results_have_clip_benchmarks_fields(matcher, table):
    result = retrieval(matcher, table, candidates=4, ks=(1, 5))
    plain, again = result.to_json(), result.reranked.to_json()
    assert (plain["task"], again["task"]) == ("zeroshot_retrieval", "zeroshot_retrieval_reranked")
    assert plain["metrics"].keys() == again["metrics"].keys() and "candidates" not in plain
    assert again["candidates"] == 4 and plain["model"] == again["model"]


def test_a_pair_that_both_directions_ask_for_is_scored_once_and_counted(matcher, table):
    counted = []

    @contextmanager
    def counting(what, total):
        counted.append((what, total))
        yield counted.append

    retrieval(matcher, table, candidates=100, counting=counting)
    (what, total), *done = counted
    assert "GiB of tokens" in what and total == sum(done) == 9 * 7


def test_a_model_without_fusion_encoder_cannot_rerank(model, make_table, square):
    with pytest.raises(ValueError, match="colours has no fusion encoder"):
        retrieval(model, make_table([(square("red"), ["red"])]), candidates=3)


@settings(max_examples=60)
@given(st.data())
def test_the_nearest_keys_are_those_of_the_whole_matrix_for_any_tile(data):
    n, m, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 25))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    queries, keys = (normalize(torch.randn(count, 6, generator=generator), dim=1) for count in (n, m))
    found = nearest(queries, keys, k, tile=(data.draw(st.integers(1, 8)), data.draw(st.integers(1, 25))))
    wanted = np.argsort(-(queries @ keys.T).numpy(), axis=1)[:, :k]
    assert (np.sort(found, axis=1) == np.sort(wanted, axis=1)).all()


def test_which_keys_tie_for_the_last_place_does_not_follow_their_order():
    """Equal features, query i belongs to key i: ten of a hundred candidates hold the right one as guessing would."""
    same = normalize(torch.ones(100, 8), dim=1)
    found = nearest(same, same, 10)
    assert {len(set(row)) for row in found.tolist()} == {10}
    assert set(found[0]) not in (set(range(10)), set(range(90, 100)))
    assert nearest(same * torch.nan, same, 3).shape == (100, 3)


def test_equal_verdicts_count_as_a_random_order_and_what_is_no_candidate_is_not_found():
    right = positives(np.arange(4), np.array([0, 1, 2, 9]), 4)
    candidates = np.tile(np.arange(5), (4, 1))
    scores = np.zeros((4, 5), np.float32)
    recall = reranked_recall(Reranked(candidates, scores), 10, right, (1, 2, 5))
    assert recall == pytest.approx({1: 3 / 5 / 4, 2: 6 / 5 / 4, 5: 3 / 4})  # query 3: not among its candidates


@pytest.mark.parametrize(("part", "said"), [("fusion", "the fusion encoder of"), ("towers", "the towers of")])
def test_a_run_that_diverged_is_one_clear_line_and_not_a_bad_figure(table, part, said):
    broken = live_matcher()
    if part == "fusion":
        torch.nn.init.constant_(broken.fusion.itm.bias, torch.nan)
    else:
        torch.nn.init.constant_(broken.towers.clip.text.ln_final.bias, torch.inf)
    with pytest.raises(UserError, match=rf"{said} .* not finite"):
        retrieval(broken, table, candidates=3)


def test_tokens_beyond_float16_are_cut_to_its_largest_number(matcher):
    tokens = torch.tensor([[-1e6, 65_500.0, 0.5, 1e30]])
    assert halved(tokens, matcher).tolist() == [[-65_504, 65_504, 0.5, 65_504]]
    assert halved(tokens, matcher).dtype == torch.float16


def test_the_command_prints_both_and_refuses_what_cannot_be(matcher, table, tmp_path, capsys):
    run = str(save_run(tmp_path / "run", matcher.towers, matcher.fusion))
    plain = str(save_run(tmp_path / "plain", matcher.towers, None))
    quick = ["--retrieval", str(table.path), "--workers", "0", "--device", "cpu", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["eval", run, *quick, "--rerank", "3"])
    said = capsys.readouterr()
    results = json.loads(said.out.splitlines()[-1])["results"]
    assert ended.value.code == 0 and [result["task"] for result in results] == [
        "zeroshot_retrieval",
        "zeroshot_retrieval_reranked",
    ]
    wanted = retrieval(matcher, table, candidates=3).reranked
    assert results[1]["metrics"] == pytest.approx(wanted.to_json()["metrics"]) and "reranked on table" in said.err
    plain_result = retrieval(matcher, table)
    assert ("re-ranking does harm" in said.err) is (wanted.both(1) < plain_result.both(1))
    for argv, told in (
        ([plain, *quick, "--rerank", "3"], "train one: truepair train --method never"),
        (["open_clip:truepair-test", *quick, "--rerank", "3"], "'open_clip:truepair-test' has no fusion encoder"),
        (["nosuchrun", *quick, "--rerank", "3"], "'nosuchrun' is no run (no run.toml there)"),
        ([run, *quick, "--rerank", "0"], "--rerank 0 makes no sense"),
        ([run, "--noise", str(table.path), "--rerank", "3"], "give --retrieval TABLE too"),
        ([run, *quick, "--rerank", "3", "--no-itm"], "give --noise TABLE too"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["eval", *argv])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and told in error and error.count("\n") == 1
