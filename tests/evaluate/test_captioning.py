"""Captioning figures: those of COCO's evaluation, to the last digit, whatever the captions come from."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_captioners import live_captioner, save_run

from truepair.cli import main
from truepair.errors import UserError
from truepair.evaluate import meteor as meteor_module
from truepair.evaluate.captioning import caption_figures, captioning, written_by
from truepair.evaluate.clipscore import clip_scores
from truepair.evaluate.described import (
    Candidates,
    candidates_in_column,
    candidates_in_file,
    described_json,
    described_table,
    image_id,
    write_results,
)
from truepair.evaluate.ngrams import Sentences, bleu, cider_d, rouge_l
from truepair.evaluate.ptb import ptb_words
from truepair.models.image_to_text import open_captioner

GOLDEN = json.loads((Path(__file__).parent / "golden_captioning.json").read_text(encoding="utf-8"))
IMAGES = GOLDEN["images"]


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1, err
    return err


def judged(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[dict, str]:
    """The only result of `truepair eval ... --json`, and what people are told."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", *argv, "--workers", "0", "--device", "cpu", "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    (result,) = json.loads(said.out.splitlines()[-1])["results"]
    return result, said.err


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_are_those_of_cocos_tokenizer() -> None:
    for image in IMAGES:
        texts = [image["candidate"], *image["references"]]
        for text, words in zip(texts, [image["candidate_words"], *image["reference_words"]], strict=True):
            assert " ".join(ptb_words(text)) == words, text


def test_words_are_those_of_cocos_tokenizer_here_and_now() -> None:
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    texts = [text for image in IMAGES for text in [image["candidate"], *image["references"]] if text]
    texts += [
        "She'd've stayed; they cannot!",
        "No. 5, no. 5 and no.",
        "Inc. (1,000.50) etc.",
        'e.g. "x-rays"',
        "w/ R&B",
    ]
    given = {number: [{"caption": text}] for number, text in enumerate(texts)}
    theirs = tokenizer.PTBTokenizer().tokenize(given)
    assert {number: [" ".join(ptb_words(text))] for number, text in enumerate(texts)} == theirs


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60).filter(lambda text: "<" not in text))  # markup keeps its spaces
def test_any_text_has_words_without_spaces_or_capitals(text: str) -> None:
    for word in ptb_words(text):
        assert word.split() == [word] and word == word.lower()


@pytest.mark.parametrize(
    "text", ["a" * 4096, "a." * 2048, "a-" * 2048, "<a" * 2048, "'" * 4096, "1," * 2048, "a@" * 2048]
)
def test_hostile_captions_cost_little(text: str) -> None:
    start = time.perf_counter()
    ptb_words(text * 100)
    assert time.perf_counter() - start < 2


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_cocos_evaluation() -> None:
    figures = caption_figures([image["candidate"] for image in IMAGES], [image["references"] for image in IMAGES])
    golden = GOLDEN["figures"]
    assert figures.bleu == pytest.approx([golden[f"Bleu_{order}"] for order in (1, 2, 3, 4)], rel=1e-12)
    assert figures.cider == pytest.approx([image["CIDEr"] for image in IMAGES], rel=1e-12, abs=1e-12)
    assert figures.rouge_l == pytest.approx([image["ROUGE_L"] for image in IMAGES], rel=1e-12)
    assert figures.cider.mean() == pytest.approx(golden["CIDEr"], rel=1e-12)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=6))
def test_any_words_give_the_figures_of_pycocoevalcap(images: list[tuple[list[str], list[list[str]]]]) -> None:
    scorers = pytest.importorskip("pycocoevalcap.bleu.bleu"), pytest.importorskip("pycocoevalcap.cider.cider")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    theirs = {number: [" ".join(words)] for number, (words, _) in enumerate(images)}
    references = {number: [" ".join(words) for words in several] for number, (_, several) in enumerate(images)}
    sentences = Sentences.of([words for words, _ in images], [several for _, several in images])
    np.testing.assert_allclose(bleu(sentences), scorers[0].Bleu(4).compute_score(references, theirs, verbose=0)[0])
    if any(word for _, several in images for words in several for word in words):  # it asserts that there is one
        cider = scorers[1].Cider().compute_score(references, theirs)[1]
        np.testing.assert_allclose(cider_d(sentences), cider, atol=1e-12)
    np.testing.assert_allclose(rouge_l(sentences), rouge.Rouge().compute_score(references, theirs)[1])


def test_captions_without_words_or_in_a_corpus_of_one_are_no_numbers_gone_wrong() -> None:
    figures = caption_figures([""], [["", "..."]])
    assert np.isfinite(figures.bleu).all() and figures.cider.tolist() == [0] and figures.rouge_l.tolist() == [1]
    with pytest.raises(ValueError, match="references"):
        caption_figures(["a"], [[]])


def test_long_and_short_captions_share_the_dynamic_programme(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [list(rng.choice(list("abcdef"), size)) for size in (0, 1, 2, 30, 200, 3, 50)]
    whole = rouge_l(Sentences.of(words[::-1], [[some, ["a"]] for some in words]))
    monkeypatch.setattr("truepair.evaluate.ngrams.CELLS", 64)
    assert rouge_l(Sentences.of(words[::-1], [[some, ["a"]] for some in words])).tolist() == whole.tolist()


def test_meteor_is_asked_as_pycocoevalcap_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pycocoevalcap.meteor.meteor")
    asked: list[dict[int, list[str]]] = []
    program = SimpleNamespace(compute_score=lambda *them: (asked.extend(them), (0.25, []))[1])
    monkeypatch.setattr(module, "Meteor", lambda: program)
    monkeypatch.setattr(shutil, "which", lambda _: "java")
    assert meteor_module.meteor([["a", "dog"]], [[["dogs"], ["two", "dogs"]]]) == 0.25
    assert asked == [{0: ["dogs", "two dogs"]}, {0: ["a dog"]}]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="Java"):
        meteor_module.meteor([["a"]], [[["a"]]])


# -- CLIPScore ---------------------------------------------------------------------------------------------------------


def test_clipscore_is_hessels(model, square) -> None:
    images = [square("red"), square("green"), square("blue"), b"broken"]
    candidates = ["red", "blue", "yellow", "red"]
    references = [["blue", "red green"], ["green", "blue"], ["blue"], ["red"]]
    fit, harmonic, skipped = clip_scores(model, images.__getitem__, candidates, references)

    def text(words: str) -> torch.Tensor:
        return model.encode_text(model.tokenize([f"A photo depicts {words}"]))[0]

    for i, colour in enumerate([(220, 30, 30), (30, 200, 40), (30, 40, 220)]):
        image = torch.nn.functional.normalize(torch.tensor(colour) - 127.5, dim=0)
        own = 2.5 * max(float(image @ text(candidates[i])), 0)
        best = max(0.0, *(float(text(candidates[i]) @ text(reference)) for reference in references[i]))
        assert fit[i] == pytest.approx(own, abs=1e-5)
        assert harmonic[i] == pytest.approx(2 * own * best / (own + best) if own + best else 0, abs=1e-5)
    assert fit[0] == pytest.approx(2.5, abs=0.01) and fit[2] == 0 and harmonic[2] == 0
    assert np.isnan(fit[3]) and np.isnan(harmonic[3]) and skipped == [(3, "unreadable image")]


# -- images and candidates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "number"),
    [("COCO_val2014_000000391895", 391895), ("000000391895", 391895), (391895, 391895), ("1f600-noto", "1f600-noto")],
)
def test_ids_are_cocos_where_keys_are(key: object, number: object) -> None:
    assert image_id(key) == number


@pytest.fixture
def table(make_table, square):
    """Five rows of four images: two of one image, one without caption; candidates for three rows."""
    made = make_table(
        [
            (square("red"), ["a red thing", "red all over"]),
            (square("green"), ["something green", ""]),
            (square("red"), ["so red"]),
            (square("blue"), []),
            (square("cyan"), ["a cyan thing"]),
        ]
    )
    made.add_column("synthetic", [[], ["green", "blue"], ["red"], ["blue"], []], {})
    return made


def test_rows_of_one_image_share_their_references_and_rows_without_any_are_counted(table) -> None:
    images = described_table(table)
    assert images.references == [["a red thing", "red all over", "so red"], ["something green"], ["a cyan thing"]]
    assert images.ids == ["k0", "k1", "k4"] and images.rows.tolist() == [0, 1, 4]
    assert images.skipped == {"no reference": 1}


def test_a_column_of_captions_is_scored_against_the_others(table, model) -> None:
    images = described_table(table)
    candidates = candidates_in_column(images, "synthetic")
    assert candidates.texts == ["red", "green", None]
    result = captioning(images, candidates, judge=model)
    figures = caption_figures(["red", "green"], images.references[:2])
    assert result.metrics["CIDEr"] == figures.cider.mean() and result.metrics["Bleu_1"] == figures.bleu[0]
    assert result.metrics["CLIPScore"] == pytest.approx(2.5, abs=0.01)
    assert (result.n_images, result.n_described, result.n_references) == (2, 3, 4)
    assert result.skipped == {"no reference": 1, "no candidate": 1}
    assert result.to_json() == {
        "dataset": "table",
        "model": "synthetic",
        "pretrained": "",
        "task": "captioning",
        "metrics": result.metrics,
        "language": "en",
        "judge": "colours",
        "coverage": 2 / 3,
        "n_images": 2,
        "n_described": 3,
        "n_references": 4,
        "references": "caption",
        "skipped": result.skipped,
    }
    table.add_column("several", [["first"], [], ["second"], [], []], {})
    assert candidates_in_column(images, "several").texts == ["first", None, None]
    with pytest.raises(UserError, match="compared with itself"):
        candidates_in_column(images, "caption")
    with pytest.raises(UserError, match="no column 'nothing'"):
        candidates_in_column(images, "nothing")
    with pytest.raises(UserError, match="none of the 3 images"):
        captioning(images, Candidates("synthetic", [None] * 3, {}))


def test_an_empty_caption_of_a_column_is_a_bad_caption_and_an_empty_list_none(table) -> None:
    images = described_table(table)
    table.add_column("silent", [[], [""], ["red"], [], []], {})
    table.add_column("mute", [[], [], ["red"], [], []], {})
    silent, mute = (candidates_in_column(images, name) for name in ("silent", "mute"))
    assert (silent.texts, mute.texts) == (["red", "", None], ["red", None, None])
    bad, left_out = captioning(images, silent), captioning(images, mute)
    assert bad.metrics == captioning(images, Candidates("model", ["red", "", None], {})).metrics
    assert bad.metrics["ROUGE_L"] < left_out.metrics["ROUGE_L"]
    assert (bad.coverage, left_out.coverage) == (2 / 3, 1 / 3)
    table.add_column("one", ["x", "", "red", "", "y"], {})
    assert candidates_in_column(images, "one").texts == ["x", "", "y"]


def test_a_table_or_file_without_references_is_one_clear_line(make_table, square, tmp_path) -> None:
    with pytest.raises(UserError, match="nothing to compare with"):
        described_table(make_table([(square("red"), [])]))
    (tmp_path / "x.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(UserError, match="nothing to compare with"):
        described_json(tmp_path / "x.json")
    for wrong in ("[]", "{", '{"images": [{"id": 1}]}', '{"images": 3}'):
        (tmp_path / "x.json").write_text(wrong)
        with pytest.raises(UserError, match=r"x\.json"):
            described_json(tmp_path / "x.json")


def test_cocos_and_karpathys_files_name_the_same_images(tmp_path) -> None:
    coco = {
        "images": [{"id": 7}, {"id": 9}, {"id": 11}],
        "annotations": [
            {"image_id": 9, "caption": "nine"},
            {"image_id": 7, "caption": "seven "},
            {"image_id": 9, "caption": "IX"},
        ],
    }
    names = {"filename": "COCO_val2014_000000000007.jpg"}, {"filename": "b.jpg", "cocoid": 9}
    sentences = [{"raw": "seven"}], [{"raw": "nine"}, {"raw": "IX"}]
    karpathy = {"images": [entry | {"sentences": raws} for entry, raws in zip(names, sentences, strict=True)]}
    for name, content in (("coco.json", coco), ("karpathy.json", karpathy)):
        (tmp_path / name).write_text(json.dumps(content))
        images = described_json(tmp_path / name)
        assert dict(zip(images.ids, images.references, strict=True)) == {7: ["seven"], 9: ["nine", "IX"]}
    assert described_json(tmp_path / "coco.json").skipped == {"no reference": 1}


def test_what_is_written_as_cocos_results_is_read_back(table, tmp_path) -> None:
    images = described_table(table)
    file = tmp_path / "results.json"
    write_results(file, images, Candidates("me", ["é", None, ""], {}))
    assert json.loads(file.read_text()) == [{"image_id": "k0", "caption": "é"}, {"image_id": "k4", "caption": ""}]
    assert candidates_in_file(images, file).texts == ["é", None, ""]
    file.write_text('[{"image_id": "k1", "caption": "x"}, {"image_id": 5, "caption": "x"}]')
    found = candidates_in_file(images, file)
    assert found.texts == [None, "x", None]
    assert found.skipped == {"no candidate": 2, "candidate of no image here": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"image_id": "k1", "caption": "x"}, {"image_id": "k1", "caption": "y"}]', "two captions for image 'k1'"),
        ('[{"image_id": 5, "caption": "x"}]', "no caption for images like 'k0'"),
        ("[]", "it is empty"),
        ('[{"image_id": 5}]', "no COCO result JSON"),
        ('{"a": 1}', "no COCO result JSON"),
        ("nothing", "cannot be read as JSON"),
    ],
)
def test_results_that_do_not_fit_are_refused(table, tmp_path, content, why) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=why):
        candidates_in_file(described_table(table), tmp_path / "results.json")


# -- captioners --------------------------------------------------------------------------------------------------------


@pytest.fixture
def blip2(captioner_folders: dict[str, Path]) -> str:
    return f"hf:{captioner_folders['blip2']}"


def test_a_captioner_writes_one_caption_an_image_and_bad_images_are_counted(blip2, make_table, square) -> None:
    pairs = [(square(colour), [colour]) for colour in ("red", "green", "red", "blue", "cyan")]
    images = described_table(make_table([*pairs, (b"broken", ["nothing"])]))
    captioner = open_captioner(blip2)
    done: list[int] = []
    written = written_by(captioner, images, batch_size=2, progress=done.append)
    assert len(written.texts) == 5 and all(isinstance(text, str) for text in written.texts[:4])
    assert written.texts[4] is None and written.skipped == {"unreadable image": 1} and sum(done) == 5
    result = captioning(images, written)
    assert (
        result.n_images == 4 and result.captions == blip2 and result.judge == "" and "CLIPScore" not in result.metrics
    )
    alone = written_by(captioner, images, batch_size=1)
    assert alone.texts == written.texts


def test_a_captioner_that_says_nothing_has_said_an_empty_caption(blip2, make_table, square, monkeypatch) -> None:
    captioner = open_captioner(blip2)
    monkeypatch.setattr(captioner, "generate", lambda inputs, rows, *_: [[] for _ in rows])
    images = described_table(make_table([(square("red"), ["red"]), (square("blue"), ["blue"])]))
    written = written_by(captioner, images)
    assert written.texts == ["", ""] and captioning(images, written).metrics["CIDEr"] == 0


def test_eval_captions_a_table_writes_cocos_results_and_scores_them_alike(blip2, table, tmp_path, capsys) -> None:
    out, here = str(tmp_path / "results.json"), ["--captioning", str(table.path)]
    judge = ["--clipscore", "open_clip:truepair-test", "--beams", "2"]
    first, told = judged(capsys, blip2, *here, "--captions-out", out, *judge)
    assert first["model"] == blip2 and first["judge"] == "truepair-test" and 0 <= first["metrics"]["CLIPScore"] <= 2.5
    assert "CIDEr" in told and f"{100 * first['metrics']['Bleu_1']:.1f}" in told
    again, _ = judged(capsys, *here, "--candidates", out)
    assert again["model"] == "results.json" and "CLIPScore" not in again["metrics"]
    assert again["metrics"].items() <= first["metrics"].items()


def test_eval_lets_a_run_caption_and_judge(table, tmp_path, capsys) -> None:
    run = str(save_run(tmp_path / "run", live_captioner()))
    result, _ = judged(capsys, run, "--captioning", str(table.path))
    assert result["model"] == run and result["n_images"] == 3 and 0 <= result["metrics"]["CLIPScore"] <= 2.5


def test_eval_scores_a_column_without_a_model(table, capsys) -> None:
    result, told = judged(capsys, "--captioning", str(table.path), "--candidates", "synthetic")
    assert result["n_images"] == 2 and result["skipped"] == {"no reference": 1, "no candidate": 1}
    assert "left out of table 1: no candidate" in told
    assert result["coverage"] == pytest.approx(2 / 3) and "2 of 3" in told and "(on 66.7 % of the images)" in told


def test_eval_refuses_what_cannot_be(table, tmp_path, capsys) -> None:
    here = ["--captioning", str(table.path), "--device", "cpu"]
    assert "whose captions" in said(capsys, "eval", *here)
    assert "writes no captions" in said(capsys, "eval", "open_clip:truepair-test", *here)
    assert "neither a run" in said(capsys, "eval", str(tmp_path), *here, "--clipscore", "open_clip:truepair-test")
    assert "compared with itself" in said(capsys, "eval", *here, "--candidates", "caption")
    assert "which MODEL" in said(capsys, "eval", "--retrieval", str(table.path))
    twice = ["--captioning", str(table.path), str(table.path), "--candidates", "synthetic", "--captions-out", "x.json"]
    assert "one --captioning" in said(capsys, "eval", *twice)
    (tmp_path / "a.json").write_text('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}')
    assert "index it" in said(capsys, "eval", "hf:x", "--captioning", str(tmp_path / "a.json"), "--device", "cpu")
    assert not os.path.exists("x.json")
