"""An audit scores every pair; with the truth known, noise detection says how well."""

import dataclasses
import importlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted import encoded, picture, planted
from run_matchers import live_matcher, save_run
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import normalize

from truepair.cli import main
from truepair.cli.audit import _say_issues, _say_scores
from truepair.errors import UserError
from truepair.evaluate import features as features_module
from truepair.evaluate import rerank as rerank_module
from truepair.evaluate.audit import audit
from truepair.evaluate.features import image_features
from truepair.evaluate.labelled import calibrated, to_label
from truepair.evaluate.noise import noise_detection, score_pairs
from truepair.evaluate.tallies import LONGEST_NAME, sources
from truepair.models.dual import create, save_local_dir
from truepair.noise.issues import ISSUES
from truepair.noise.labels import Labels
from truepair.pairs.image import decode_centre
from truepair.pairs.subset import read_subset
from truepair.pairs.table import SCHEMA, PairTable

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
    assert (result.n, result.scored) == (122, 120) and result.expected_noise == pytest.approx(40, abs=6)
    assert result.skipped == {"unreadable image": 1, "no caption": 1}
    json.dumps(result.to_json())


def test_the_file_has_a_row_for_every_pair_and_says_why_one_has_no_score(model, noisy, tmp_path):
    result = audit(model, noisy, tmp_path / "audit")
    table = pq.read_table(result.file)
    assert result.file == tmp_path / "audit" / "audit.parquet"
    assert table.column_names == [
        "row", "key", "caption", "cosine", "neg_clip_loss", "p_noise", "problem", "is_noise",
        "mismatched_pair", "mismatched_pair_flag",
        "near_duplicate_image", "near_duplicate_image_flag", "near_duplicate_image_group",
        "boilerplate_caption", "boilerplate_caption_flag", "incomplete_caption", "incomplete_caption_flag",
        "false_negative_group", "false_negative_group_flag", "false_negative_group_group",
        "wrong_language", "wrong_language_flag", "broken_image", "broken_image_flag", "action",
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
    unseen = ["--no-html"]

    def said(*argv):
        with pytest.raises(SystemExit) as ended:
            main([*argv, *quick])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]), err

    audited, printed = said("audit", str(described.path), "--model", run, "--out", str(tmp_path / "audit"), *unseen)
    assert audited["itm"]["figures"]["n"] == 60 and "1 - itm" in printed and "  itm 0." in printed
    figures = said("eval", run, "--noise", str(described.path))[0]["results"][0]["metrics"]
    assert figures["itm_auroc"] == pytest.approx(audited["itm"]["figures"]["auroc"])
    plain, _ = said("audit", str(described.path), "--model", run, "--out", str(tmp_path / "plain"), "--no-itm", *unseen)
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

    code, found, err = ended(
        "audit", str(described.path), "--model", str(run), "--out", str(tmp_path / "a"), "--no-html"
    )
    assert code == 0 and "itm" not in found and err.count("state.pt cannot be read") == err.count("without ITM: ") == 1
    code, found, err = ended("eval", str(run), *noise)
    assert code == 0 and "itm_auroc" not in found["results"][0]["metrics"] and err.count("cannot be read") == 1
    assert "without ITM" not in ended("eval", str(run), *noise, "--no-itm")[2]
    code, found, err = ended("eval", str(run), *noise, *retrieved)
    assert (code, found) == (2, None) and "state.pt cannot be read" in err and err.count("\n") == 1


@pytest.fixture
def sharp_model(model):
    """It sees colours as it did, and pixels fine enough for a hash."""
    model.image_size = 64
    model.encode_image = lambda images: normalize(images.float().mean(dim=(2, 3)) - 127.5, dim=1)
    return model


@pytest.fixture
def troubled(make_table, tmp_path):
    """A table with planted trouble, a table to be tested on, and which rows have which issue."""
    pairs, rows = planted()
    other = make_table([(encoded(picture("cyan", 303).resize((80, 80)), "JPEG", quality=70), ["cyan"])])
    (tmp_path / "table").rename(tmp_path / "other")
    table = make_table(pairs)
    stored = pq.read_table(table.parquet("width"))
    for name in ("width", "height"):
        stored = stored.set_column(stored.column_names.index(name), name, [[96] * len(pairs)])
    pq.write_table(stored.cast(SCHEMA), table.parquet("width"))
    return PairTable.open(table.path), dataclasses.replace(other, path=tmp_path / "other"), rows


def flags_in(file):
    return flags_in_table(pq.read_table(file))


def flags_in_table(table):
    names = [name for name in table.column_names if name.endswith("_flag")]
    return {name.removesuffix("_flag"): set(np.flatnonzero(table[name].to_numpy()).tolist()) for name in names}


def test_planted_trouble_is_found_and_told(sharp_model, troubled, tmp_path):
    table, other, rows = troubled
    result = audit(sharp_model, table, tmp_path / "audit", against=[other])
    found = flags_in(result.file)
    assert rows["mismatched_pair"] <= found["mismatched_pair"]
    for name in ("near_duplicate_image", "boilerplate_caption", "incomplete_caption", "broken_image", "leaked_image"):
        assert found[name] == rows[name], name
    assert found["wrong_language"] == rows["wrong_language"]
    table = pq.read_table(result.file)
    groups = table["near_duplicate_image_group"].to_pylist()
    assert {row for row, group in enumerate(groups) if group is not None} == rows["near_duplicate_image"]
    assert len({groups[row] for row in rows["near_duplicate_image"]}) == 1
    gravest = {"drop": 4, "merge": 3, "recaption": 2, "review": 1, "keep": 0}
    action_of = {issue.name: issue.action for issue in ISSUES}
    for row, action in enumerate(table["action"].to_pylist()):
        wanted = [action_of[name] for name, flagged in found.items() if row in flagged]
        assert action == max(wanted, key=gravest.get, default="keep")


def test_the_record_says_what_was_looked_for_and_what_not(sharp_model, troubled, tmp_path):
    table, _, rows = troubled
    table.add_column("is_noise", np.isin(np.arange(len(table)), list(rows["mismatched_pair"])), {})
    table.add_column("url", [f"https://www.Shop{row % 3}.example/{row}.jpg" for row in range(len(table))], {})
    result = audit(sharp_model, table, tmp_path / "audit", issues=["mismatched_pair", "leaked_image", "broken_image"])
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record == result.record and record["n"] == len(table) and record["scored"] == len(table) - 1
    told = {issue["name"]: issue for issue in record["issues"]}
    assert list(told) == [issue.name for issue in ISSUES]
    assert "--against" in told["leaked_image"]["skipped"] and "--issues" in told["wrong_language"]["skipped"]
    assert told["broken_image"] | {"skipped": None, "flagged": 2, "judged": len(table)} == told["broken_image"]
    assert "wrong_language" not in pq.read_table(result.file).column_names

    p_noise, loss = result.scores.p_noise, -result.scores.neg_clip_loss
    known = ~np.isnan(p_noise)
    edges = np.array(record["loss"]["edges"])
    for name, rows_of in (("all", known), ("noisy", known & (table.numbers("is_noise") > 0))):
        assert record["loss"][name] == np.histogram(loss[rows_of], edges)[0].tolist()
    assert record["loss"]["clean"] == (np.array(record["loss"]["all"]) - record["loss"]["noisy"]).tolist()
    assert len(record["p_noise"]["edges"]) == 1001 and sum(record["p_noise"]["counts"]) == known.sum()
    assert sum(record["reliability"]["counts"]) == known.sum() and record["truth"]
    (shard,) = (source for source in record["sources"] if source["kind"] == "shard")
    assert shard["n"] == known.sum() and shard["rate"] == pytest.approx(p_noise[known].mean(), rel=1e-4)
    domains = {source["name"]: source for source in record["sources"] if source["kind"] == "domain"}
    assert set(domains) == {f"shop{i}.example" for i in range(3)}
    mine = known & (np.arange(len(table)) % 3 == 1)
    assert domains["shop1.example"]["doubted"] == (p_noise[mine] >= 0.5).sum()
    assert sum(record["actions"].values()) == len(table)
    sample = record["to_label"]
    assert len(sample["rows"]) == sum(stratum["drawn"] for stratum in sample["strata"]) == known.sum()
    for row, stratum in zip(sample["rows"], sample["stratum"], strict=True):
        assert sample["strata"][stratum]["low"] <= p_noise[row] <= sample["strata"][stratum]["high"]


def test_rows_to_keep_have_a_low_p_noise_and_no_flag_that_drops_them(sharp_model, troubled, tmp_path):
    table, other, _ = troubled
    out = tmp_path / "audit"
    result = audit(sharp_model, table, out, against=[other], uids=True)
    found, p_noise = flags_in(result.file), result.scores.p_noise
    wanted = [
        row
        for row in range(len(table))
        if p_noise[row] < 0.5 and row not in found["broken_image"] | found["leaked_image"]
    ]
    assert pq.read_table(out / "keep.parquet")["row"].to_pylist() == wanted == result.kept.tolist()
    assert read_subset(table, out / "keep.npy").tolist() == wanted
    high = audit(sharp_model, table, out, threshold=0.999999, drop=["wrong_language"]).kept
    assert high.tolist() == [
        row for row in range(len(table)) if p_noise[row] < 0.999999 and row not in found["wrong_language"]
    ]
    merged = audit(sharp_model, table, out, threshold=1, drop=["near_duplicate_image", "broken_image"]).kept
    copies = sorted(sorted(found["near_duplicate_image"]), key=lambda row: -result.scores.neg_clip_loss[row])
    sure = set(np.flatnonzero(p_noise == 1).tolist())
    assert set(range(len(table))) - set(merged.tolist()) == sure | found["broken_image"] | set(copies[1:])
    with pytest.raises(UserError, match=r"--drop leaked_image is not possible: .*--against"):
        audit(sharp_model, table, out, drop=["leaked_image"])
    with pytest.raises(UserError, match="no such issue; choose among mismatched_pair"):
        audit(sharp_model, table, out, issues=["mismatch"])
    with pytest.raises(UserError, match="no language 'xx' is known; choose one of en, "):
        audit(sharp_model, table, out, language="xx")


@pytest.fixture
def decoded(monkeypatch):
    """Images decoded so far."""
    seen = []
    monkeypatch.setattr(
        features_module, "decode_centre", lambda data, *a, **how: seen.append(data) or decode_centre(data, *a, **how)
    )
    return seen


def test_the_same_audit_again_takes_its_scores_from_the_folder(sharp_model, troubled, tmp_path, decoded):
    table, other, _ = troubled
    out = tmp_path / "audit"
    first = audit(sharp_model, table, out, against=[other])
    held = pq.read_table(first.file)
    count = len(decoded)
    second = audit(sharp_model, table, out, against=[other])
    assert len(decoded) == count and second.remembered and not first.remembered
    assert pq.read_table(second.file).equals(held) and second.record == first.record
    third = audit(sharp_model, table, out, issues=["near_duplicate_image"])
    assert len(decoded) == count and flags_in(third.file) == {
        "near_duplicate_image": flags_in_table(held)["near_duplicate_image"]
    }
    fourth = audit(sharp_model, table, out)
    assert "--again" in next(i for i in fourth.record["issues"] if i["name"] == "false_negative_group")["skipped"]
    assert audit(sharp_model, table, out, again=True).remembered is False and len(decoded) == 2 * count - 1


def test_other_weights_captions_or_settings_score_anew(troubled, tmp_path, decoded):
    table, out = troubled[0], tmp_path / "audit"
    tiny = create("truepair-test")

    def scored_anew(**how):
        before = len(decoded)
        audit(tiny, how.pop("table", table), out, batch_size=64, **how)
        return len(decoded) > before

    assert scored_anew() and not scored_anew()
    assert scored_anew(seed=1) and not scored_anew(seed=1) and scored_anew()
    with torch.no_grad():
        tiny.clip.logit_scale += 0.1
    assert scored_anew() and not scored_anew()
    table.add_column("others", pa.array([["a red wall"]] * len(table), pa.list_(pa.string())), {})
    assert scored_anew(table=dataclasses.replace(table, caption_column="others"))
    (out / "scores" / "pass.json").unlink()  # as a pass that was killed leaves it
    assert scored_anew()


def test_a_leak_check_that_the_last_audit_was_not_asked_for_is_made(sharp_model, troubled, tmp_path, decoded):
    table, other, rows = troubled
    audit(sharp_model, table, tmp_path / "audit", against=[other], issues=["mismatched_pair"])
    count = len(decoded)
    assert count == len(table)  # nobody asked for leaks, so the second table was not looked at
    found = audit(sharp_model, table, tmp_path / "audit", against=[other])
    assert flags_in(found.file)["leaked_image"] == rows["leaked_image"] and len(decoded) == count + 1


def test_an_audit_that_was_interrupted_lends_nothing_to_the_next(sharp_model, troubled, tmp_path, monkeypatch):
    table, other, rows = troubled
    out = tmp_path / "audit"
    asked = ["leaked_image"]
    first = audit(sharp_model, table, out, against=[other], issues=asked)
    record = (out / "audit.json").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("truepair.evaluate.audit"), "write_subset", killed)
        with pytest.raises(KeyboardInterrupt):
            audit(sharp_model, table, out, against=[table], issues=asked)
    assert len(flags_in(out / "audit.parquet")["leaked_image"]) > 1 and not (out / "audit.json").exists()
    (out / "audit.json").write_text(record)  # as when the files of two audits are put together
    again = audit(sharp_model, table, out, against=[other], issues=asked)
    assert flags_in(again.file)["leaked_image"] == rows["leaked_image"] and again.record == first.record
    (out / "audit.parquet").write_bytes(b"damaged")
    assert audit(sharp_model, table, out, against=[other], issues=asked).record == first.record


def test_a_file_that_could_not_be_read_is_no_broken_image_and_is_tried_again(sharp_model, troubled, tmp_path, decoded):
    table, _, rows = troubled
    image, away = table.path / "images" / "1.png", tmp_path / "away.png"
    image.rename(away)
    out = tmp_path / "audit"
    first = audit(sharp_model, table, out, issues=["broken_image"])
    stored = pq.read_table(first.file)
    assert stored["problem"][1].as_py() == "missing or changed file" and stored["broken_image"][1].as_py() is None
    assert stored["action"][1].as_py() == "review" and flags_in(first.file)["broken_image"] == rows["broken_image"]
    assert audit(sharp_model, table, out, issues=["broken_image"]).remembered
    away.rename(image)
    back = audit(sharp_model, table, out, issues=["broken_image"])
    assert not back.remembered and back.skipped == {"unreadable image": 1}
    assert pq.read_table(back.file)["action"][1].as_py() == "keep"


def test_images_of_a_second_table_that_could_not_be_looked_at_are_told_and_tried_again(
    sharp_model, troubled, make_table, tmp_path, decoded
):
    rows = troubled[2]
    (tmp_path / "table").rename(tmp_path / "audited")
    table = PairTable.open(tmp_path / "audited")
    tested = make_table([(encoded(picture("cyan", 303), "JPEG"), []), (b"torn", []), (encoded(picture("red", 9)), [])])
    (tested.path / "images" / "2.png").rename(tmp_path / "away.png")

    def audited():
        before = len(decoded)
        result = audit(sharp_model, table, tmp_path / "audit", against=[tested], issues=["leaked_image"])
        (second,) = result.record["against"]
        assert flags_in(result.file)["leaked_image"] >= rows["leaked_image"]
        assert (second["table"], second["images"]) == (str(tested.path), 3)
        return second["unseen"], len(decoded) > before

    torn = {"unreadable image": 1}
    assert audited() == (torn | {"missing or changed file": 1}, True)
    (tmp_path / "away.png").rename(tested.path / "images" / "2.png")
    assert audited() == (torn, True)
    assert audited() == (torn, False)  # these bytes stay unreadable


def test_the_command_tells_of_images_of_a_second_table_that_were_not_looked_at(capsys):
    second = {"table": "coco", "images": 5000, "unseen": {"unreadable image": 3}}
    _say_issues(SimpleNamespace(record={"issues": []}, against=[second]))
    said = " ".join(capsys.readouterr().err.split())
    assert "leaked_image: 3 of 5,000 images of coco could not be looked at (unreadable image)" in said


@pytest.mark.parametrize(("rate", "warned"), [(0.42, False), (0.40, False), (0.15, True), (0.95, True)])
def test_a_level_that_is_far_from_the_truth_is_named(capsys, rate, warned):
    truth = SimpleNamespace(auroc=0.8, average_precision=0.7, rate=rate)
    known = {"scored": 1000, "expected_noise": 430.0, "skipped": {}, "remembered": False, "recalibrated": None}
    scores = SimpleNamespace(mixture=SimpleNamespace(degenerate=""))
    found = {"figures": truth, "itm_figures": None, "agreement": None, "record": {"calibration": None}}
    _say_scores(SimpleNamespace(**known, **found, scores=scores))
    said = " ".join(capsys.readouterr().err.split())
    assert (f"is_noise says {rate:.0%}, p_noise 43%: trust the order" in said) is warned


@pytest.mark.parametrize(("flagged", "warned"), [(500, False), (501, True), (1000, True)])
def test_pairs_that_describe_each_other_everywhere_are_the_models_fault(capsys, flagged, warned):
    issue = {"name": "false_negative_group", "flagged": flagged, "judged": 1000, "action": "keep", "skipped": None}
    _say_issues(SimpleNamespace(record={"issues": [issue]}, against=[]))
    said = " ".join(capsys.readouterr().err.split())
    assert ("the model tells too little apart" in said) is warned


def test_what_cannot_be_is_refused_before_any_image_is_decoded(sharp_model, troubled, tmp_path, decoded):
    table = troubled[0]
    (tmp_path / "file").write_text("")
    table.add_column("uid", np.arange(len(table)).astype(str).tolist(), {})
    refused = [({"threshold": threshold}, "between 0 and 1") for threshold in (float("inf"), float("nan"), 2, -0.1)] + [
        ({"drop": ["leaked_image"]}, "--against"),
        ({"drop": ["broken_image"], "issues": ["mismatched_pair"]}, "not asked for"),
        ({"labels_random": True}, "--labels"),
        ({"out": tmp_path / "file"}, "is a file"),
        ({"out": tmp_path / "file" / "audit"}, "is a file"),
        ({"uids": True}, "32 hexadecimal digits"),
    ]
    for how, words in refused:
        with pytest.raises(UserError, match=words):
            audit(sharp_model, table, **{"out": tmp_path / "audit", **how})
    assert not decoded and not (tmp_path / "audit").exists()


def test_chosen_labels_are_no_noise_rate_unless_somebody_vouches_for_their_chance():
    random = np.random.default_rng(0)
    p_noise = random.beta(0.3, 1, 5000).astype(np.float32)
    noisy = random.random(5000) < p_noise
    drawn, _ = to_label(p_noise)
    others = np.setdiff1d(np.arange(5000), drawn)
    worst = np.sort(others[np.argsort(-p_noise[others])[:100]])
    none = np.zeros(0, np.int64)
    unsure = Labels(worst, noisy[worst], drawn[:50])
    for chosen in (Labels(worst, noisy[worst], none), unsure):
        with pytest.raises(UserError, match=r"no pair of the 200 that this audit drew .* --labels-random"):
            calibrated(p_noise, chosen)
    uniform = np.sort(random.choice(5000, 300, replace=False))
    told = calibrated(p_noise, Labels(uniform, noisy[uniform], none), random=True).told
    assert told["labelled"] == 300 and told["low"] <= noisy.mean() <= told["high"]
    assert told["told"] == ["taken for a uniform random sample of the table (--labels-random)"]
    mixed = np.union1d(drawn, worst)
    of_sample = calibrated(p_noise, Labels(mixed, noisy[mixed], none)).told
    assert of_sample["labelled"] == 200 and of_sample["told"][0].startswith("100 labels outside the drawn sample")
    few = calibrated(p_noise, Labels(drawn[:49], noisy[drawn[:49]], none)).told["told"]
    assert few == ["only 49 count: too few to choose a keep list by; label 50 at least, better 200"]
    with pytest.raises(UserError, match="no pair with a p_noise"):
        calibrated(
            np.append(p_noise, np.float32(np.nan)), Labels(np.array([5000]), np.array([True]), none), random=True
        )


def test_sources_have_names_of_any_bytes_and_any_length(make_table, square):
    table = make_table([(square("red", i), ["red"]) for i in range(4)])
    p_noise = np.array([0.2, 0.4, 0.9, 0.5], np.float32)
    only_shard = [{"kind": "shard", "name": "images", "n": 4, "doubted": 2, "rate": pytest.approx(0.5)}]
    table.add_column("url", pa.array([["http://a.example"]] * 4), {})
    assert sources(table, p_noise) == only_shard
    odd = [b"http://\xff.Example/1", b"http://\xff.example/2", b"http://" + b"x" * 100_000, b"HTTPS://\xc3\x89.fr"]
    for column in (pa.array(odd), pa.array(odd).view(pa.string())):
        table.add_column("url", column, {})
        found = {one["name"]: one["n"] for one in sources(table, p_noise)[1:]}
        assert found.pop("\ufffd.example") == 2 and found.pop("\u00e9.fr") == 1
        [(name, n)] = found.items()
        assert (len(name), n) == (LONGEST_NAME, 1) and set(name) == {"x", "…"}


def test_labels_make_p_noise_right_in_seconds(sharp_model, troubled, tmp_path, decoded):
    table, _, rows = troubled
    table.add_column("is_noise", np.isin(np.arange(len(table)), list(rows["mismatched_pair"])), {})
    out = tmp_path / "audit"
    first = audit(sharp_model, table, out)
    count = len(decoded)
    wrong = rows["mismatched_pair"] | {row for row in rows["boilerplate_caption"] if (row - 122) % 6}
    chosen = np.random.default_rng(0).permutation(len(table))[:70].tolist()
    lines = [f"{row},k{row},{'mismatch' if row in wrong else 'keep'}" for row in chosen]
    lines += [f"{row},,unsure" for row in set(range(len(table))) - set(chosen)][:1]
    (tmp_path / "labels.csv").write_text("\n".join(["row,key,label", *lines]) + "\n")
    result = audit(sharp_model, table, out, labels=tmp_path / "labels.csv", threshold=0.4)
    assert len(decoded) == count
    column = pq.read_table(result.file)["p_noise_recalibrated"].to_numpy()
    np.testing.assert_array_equal(column, result.recalibrated)
    known = ~np.isnan(first.scores.p_noise)
    assert (
        np.isnan(column[~known]).all() and (np.diff(column[np.argsort(first.scores.p_noise)][: known.sum()]) >= 0).all()
    )
    np.testing.assert_array_equal(pq.read_table(result.file)["mismatched_pair"].to_numpy(), column)
    (shard,) = result.record["sources"]
    assert shard["rate"] == pytest.approx(np.nanmean(column), rel=1e-4) and shard["doubted"] == (column >= 0.5).sum()
    bins = result.record["reliability"]
    counts, confidence = np.array(bins["counts"]), np.array(bins["confidence"], float)
    assert np.nansum(counts * confidence) / counts.sum() == pytest.approx(np.nanmean(column), rel=1e-4)
    told = result.record["calibration"]
    assert told["labelled"] == 70 - (136 in chosen) and told["unsure"] == 1 and len(told["map"]) == 101
    assert (
        0 < told["low"] <= len(wrong) / known.sum() <= told["high"] < 1 and told["low"] <= told["rate"] <= told["high"]
    )
    assert set(result.kept.tolist()) <= set(np.flatnonzero(column < 0.4).tolist())
    (tmp_path / "wrong.csv").write_text("row,key,label\n1,k2,keep\n")
    with pytest.raises(UserError, match="line 2"):
        audit(sharp_model, table, out, labels=tmp_path / "wrong.csv")
    assert first.record["calibration"] is None


def test_tables_of_one_row_and_without_words_are_audited_and_none_scored_is_said(model, make_table, square, tmp_path):
    table = make_table([(square("red"), ["🐶"])])
    result = audit(model, table, tmp_path / "one")
    assert result.scored == 1 and result.record["sources"][0]["n"] == 1
    assert flags_in(result.file)["incomplete_caption"] == {0}
    shutil.rmtree(tmp_path / "table")
    broken = make_table([(b"broken", ["red"]), (b"too", ["red"])])
    with pytest.raises(UserError, match="no image could be evaluated"):
        audit(model, broken, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command_writes_all_files_and_says_what_to_do_next(scenes, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    save_local_dir(create("truepair-test"), tmp_path / "model")
    out = tmp_path / "audit"
    argv = ["audit", str(scenes / "train"), "--model", f"local-dir:{tmp_path / 'model'}", "--out", str(out)]
    argv += ["--workers", "0", "--device", "cpu", "--against", str(scenes / "test")]

    def said(*more):
        with pytest.raises(SystemExit) as ended:
            main([*argv, *more, "--json"])
        assert ended.value.code == 0
        printed, err = capsys.readouterr()
        return json.loads(printed.splitlines()[-1]), err

    told, err = said("--uids")
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "audit.parquet", "audit.json", "audit.html", "keep.parquet", "keep.npy"
    }  # fmt: skip
    assert told["n"] == told["scored"] == len(PairTable.open(scenes / "train"))
    assert all(f"\n{issue.name}" in err or f"{issue.name} was not looked for" in err for issue in ISSUES)
    assert "next: " in err and "keep.parquet" in err and err.count("  p ") == 10
    told, err = said("--no-html", "--threshold", "1", "--drop", "none", "--worst", "0")
    p_noise = pq.read_table(out / "audit.parquet")["p_noise"].to_numpy()
    assert "scores of the last audit" in err and "  p " not in err and told["kept"] == (p_noise < 1).sum()
    assert (told["settings"]["drop"], told["settings"]["called"]) == ([], f"local-dir:{tmp_path / 'model'}")
    assert "loss" not in told and not any(file.endswith(".html") for file in told["files"])
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--issues", "blurred"])
    assert ended.value.code == 2 and "no such issue" in capsys.readouterr().err
