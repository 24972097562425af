"""An audit scores every pair; with the truth known, noise detection says how well."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from run_matchers import live_matcher, save_run
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from truepair.cli import main
from truepair.errors import UserError
from truepair.evaluate import features as features_module
from truepair.evaluate import rerank as rerank_module
from truepair.evaluate.audit import audit
from truepair.evaluate.features import image_features
from truepair.evaluate.noise import noise_detection, score_pairs
from truepair.models.dual import create
from truepair.pairs.image import decode_centre

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


@pytest.fixture(scope="module")
def matcher():
    return live_matcher()


@pytest.fixture
def described(make_table, square):
    """60 pairs of up to three captions, some shared, two rows of one image; a broken image, rows without captions."""
    pairs = [(square(COLOURS[i % 6], i // 6), [COLOURS[(i * i) % 5], *["some thing"] * (i % 2)]) for i in range(60)]
    pairs[7] = (pairs[7][0], ["", "one of many", "one of many", "a square!"])
    pairs[8] = (pairs[7][0], ["red"])
    pairs += [(b"broken", ["red"]), (square("red", 50), []), (square("red", 51), [""])]
    table = make_table(pairs)
    table.add_column("is_noise", np.arange(63) % 4 == 0, {})
    return table


def asked_one_by_one(matcher, table, row):
    """The mean of P(match) over the captions of a row."""
    image = torch.from_numpy(decode_centre(table.image_bytes(row), 32).copy()).permute(2, 0, 1)[None]
    said = []
    for caption in filter(None, table.captions()[row]):
        text, attended = matcher.read(matcher.towers.tokenize([caption]))
        said.append(float(matcher.probability(text, attended, matcher.see(image))))
    return np.mean(said)


@pytest.mark.parametrize(("step", "batch_size"), [(256, 256), (3, 7)])
def test_the_fusion_encoder_is_asked_of_every_caption_of_every_row(
    matcher, described, tmp_path, monkeypatch, step, batch_size
):
    monkeypatch.setattr(rerank_module, "CPU_PAIRS", step)
    decoded = []
    monkeypatch.setattr(
        features_module,
        "decode_centre",
        lambda data, *size, **how: decoded.append(data) or decode_centre(data, *size, **how),
    )
    result = audit(matcher, described, tmp_path, batch_size=batch_size)
    wanted = [asked_one_by_one(matcher, described, row) for row in range(60)]
    assert np.std(wanted) > 0.01
    np.testing.assert_allclose(result.scores.itm[:60], wanted, atol=1e-5)
    column = pq.read_table(result.file)["itm"].to_pylist()
    assert column[60:] == [None] * 3 and column[:60] == result.scores.itm[:60].tolist()
    assert len(decoded) == len(set(decoded)) == 62  # rows 7 and 8 have one image
    assert matcher.towers.training and matcher.fusion.training
    plain = audit(matcher.towers, described, tmp_path / "plain", batch_size=batch_size)
    np.testing.assert_array_equal(plain.scores.neg_clip_loss, result.scores.neg_clip_loss)
    assert "itm" not in pq.read_table(plain.file).column_names and "itm" not in plain.to_json()


def test_both_scores_are_measured_and_compared(matcher, described, tmp_path):
    result = audit(matcher, described, tmp_path)
    scores, truth = result.scores, described.numbers("is_noise")[:60]
    p_noise, doubt = scores.p_noise[:60], 1 - scores.itm[:60]
    assert result.itm_figures.auroc == pytest.approx(roc_auc_score(truth, doubt))
    assert result.itm_figures.n == result.figures.n == result.agreement.n == 60
    said = result.to_json()["itm"]
    assert said["figures"]["auroc"] == result.itm_figures.auroc
    constant = len(set(p_noise)) == 1
    assert said["rank_correlation"] == pytest.approx(
        np.nan if constant else spearmanr(p_noise, doubt).statistic, nan_ok=True
    )
    assert said["doubted_by_itm_alone"] == ((doubt >= 0.5) & (p_noise < 0.5)).sum()
    assert sum(said[f"doubted_by_{who}"] for who in ("both", "p_noise_alone", "itm_alone", "neither")) == 60


def test_noise_detection_has_the_fusion_encoders_figures_beside_the_others(matcher, described):
    found = noise_detection(matcher, described)
    metrics = found.to_json()["metrics"]
    plain = noise_detection(matcher.towers, described).to_json()["metrics"]
    assert metrics == plain | {f"itm_{name}": metrics[f"itm_{name}"] for name in plain}
    itm = score_pairs(matcher, described).itm[:60]
    assert metrics["itm_auroc"] == pytest.approx(roc_auc_score(described.numbers("is_noise")[:60], -itm))


def test_a_fusion_encoder_that_diverged_is_one_clear_line(described):
    broken = live_matcher()
    torch.nn.init.constant_(broken.fusion.itm.bias, torch.nan)
    with pytest.raises(UserError, match=r"the fusion encoder of .* not finite"):
        score_pairs(broken, described)


def test_the_commands_ask_the_fusion_encoder_of_a_run_that_has_one(matcher, described, tmp_path, capsys):
    run = str(save_run(tmp_path / "run", matcher.towers, matcher.fusion))
    quick = ["--workers", "0", "--device", "cpu", "--json"]

    def said(*argv):
        with pytest.raises(SystemExit) as ended:
            main([*argv, *quick])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]), err

    audited, printed = said("audit", str(described.path), "--model", run, "--out", str(tmp_path / "audit"))
    assert audited["itm"]["figures"]["n"] == 60 and "1 - itm" in printed and "  itm 0." in printed
    figures = said("eval", run, "--noise", str(described.path))[0]["results"][0]["metrics"]
    assert figures["itm_auroc"] == pytest.approx(audited["itm"]["figures"]["auroc"])
    plain, _ = said("audit", str(described.path), "--model", run, "--out", str(tmp_path / "plain"), "--no-itm")
    assert "itm" not in plain and plain["figures"] == audited["figures"]
    both = said(
        "eval", run, "--noise", str(described.path), "--no-itm", "--retrieval", str(described.path), "--rerank", "2"
    )[0]["results"]
    assert [result["task"] for result in both] == [
        "zeroshot_retrieval",
        "zeroshot_retrieval_reranked",
        "noise_detection",
    ]
    assert both[2]["metrics"] == {name: value for name, value in figures.items() if not name.startswith("itm")}


def test_a_fusion_encoder_that_cannot_be_read_costs_a_line_and_no_more(matcher, described, tmp_path, capsys):
    run = save_run(tmp_path / "run", matcher.towers, matcher.fusion)
    next(run.glob("checkpoints/*/state.pt")).write_bytes(b"PK" + bytes(400))
    noise, retrieved = ["--noise", str(described.path)], ["--retrieval", str(described.path), "--rerank", "2"]

    def ended(*argv):
        with pytest.raises(SystemExit) as end:
            main([*argv, "--workers", "0", "--device", "cpu", "--json"])
        out, err = capsys.readouterr()
        return end.value.code, json.loads(out.splitlines()[-1]) if out else None, err

    code, found, err = ended("audit", str(described.path), "--model", str(run), "--out", str(tmp_path / "audit"))
    assert code == 0 and "itm" not in found and err.count("state.pt cannot be read") == err.count("without ITM: ") == 1
    code, found, err = ended("eval", str(run), *noise)
    assert code == 0 and "itm_auroc" not in found["results"][0]["metrics"] and err.count("cannot be read") == 1
    assert "without ITM" not in ended("eval", str(run), *noise, "--no-itm")[2]
    code, found, err = ended("eval", str(run), *noise, *retrieved)
    assert (code, found) == (2, None) and "state.pt cannot be read" in err and err.count("\n") == 1
