"""The command: its verbs do what they say, wrong input costs one clear line and exit 2."""

import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from truepair.cli import VERBS, main
from truepair.cli.parsing import one_line, parsed
from truepair.cli.train import parse_train
from truepair.pairs.index import index
from truepair.pairs.table import PairTable

QUICK = ["--model", "truepair-test", "--batch-size", "32", "--workers", "0", "--precision", "fp32", "--device", "cpu"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    """The JSON object a verb prints as its last line; it must end well."""
    try:
        main([*argv, "--json"])
    except SystemExit as ended:
        assert ended.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a verb that must be refused with exit 2."""
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("truepair: ") and said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in VERBS)


def test_train_shows_the_options_of_the_method_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--method", "gate", "--help"])
    assert "--options.power" in capsys.readouterr().out


def test_from_shards_to_an_exported_model(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    indexed = run(capsys, "index", str(scenes / "train" / "shards"), "--out", str(tmp_path / "table"))
    noisy = run(capsys, "corrupt", str(tmp_path / "table"), "--rate", "0.5", "--out", str(tmp_path / "noisy"))
    assert "already" in refused(capsys, "corrupt", str(tmp_path / "noisy"), "--out", str(tmp_path / "twice"))
    assert noisy["rows"] == indexed["rows"] and noisy["nominal"] == 0.5 and 0 < noisy["effective"] <= 0.5

    trained = ["train", "--data", str(tmp_path / "noisy"), "--out", str(tmp_path / "run"), "--method", "gate", *QUICK]
    trained += ["--epochs", "2", "--noise.warmup-epochs", "1", "--eval.retrieval", str(scenes / "test")]
    result = run(capsys, *trained)
    assert result["step"] == result["steps"] == 2 * (indexed["rows"] // 32)
    assert 0 <= result["figures"]["text_to_image_r1"] <= 1
    again = run(capsys, *trained, "--resume")
    assert again["step"] == result["step"]

    audited = [str(tmp_path / "noisy"), "--model", str(tmp_path / "run"), "--out", str(tmp_path / "a")]
    found = run(capsys, "audit", *audited, "--to", str(tmp_path / "doubted"))
    p_noise = PairTable.open(tmp_path / "doubted").numbers("p_noise")
    assert p_noise.sum() == pytest.approx(found["expected_noise"], rel=1e-4)
    assert found["n"] == indexed["rows"] and 0 <= found["figures"]["auroc"] <= 1
    figures = run(capsys, "eval", str(tmp_path / "run"), "--zeroshot", str(scenes / "zeroshot"))
    assert set(figures["results"][0]["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    run(capsys, "export", str(tmp_path / "run"), "--out", str(tmp_path / "model"))
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= {f.name for f in (tmp_path / "model").iterdir()}


def test_a_recipe_is_overridden_by_flags(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('method = "gate"\nepochs = 9\nmodel = "truepair-test"\n\n[options]\npower = 2.0\n')
    out = tmp_path / "run"
    argv = ["train", "--config", str(recipe), "--data", str(scenes / "train"), "--out", str(out), "--epochs", "1"]
    run(capsys, *argv, *QUICK)
    kept = (out / "run.toml").read_text()
    assert "epochs = 1\n" in kept and 'method = "gate"' in kept and "power = 2.0" in kept


def test_wrong_input_costs_one_clear_line(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = str(scenes / "train")
    out = ["--out", str(tmp_path / "out")]
    empty = tmp_path / "empty"
    empty.mkdir()
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    assert "no verb 'paint'; verbs are" in refused(capsys, "paint")
    assert "perhaps audit was meant" in refused(capsys, "audti", train)
    assert f"it holds some: {scenes / 'test'}, {train}" in refused(capsys, "train", "--data", str(scenes), *out)
    assert "no such source" in refused(capsys, "index", str(tmp_path / "absent"), *out)
    assert str(empty) in refused(capsys, "index", str(empty), *out)
    assert "no usable pair" in refused(capsys, "index", str(tmp_path / "nothing.tar"), *out)
    assert "not a pair table" in refused(capsys, "train", "--data", str(empty), *out)
    assert "choose one of clip" in refused(capsys, "train", "--data", train, *out, "--method", "magic")
    assert "ViT-B-32" in refused(capsys, "train", "--data", train, *out, "--model", "ViT-B-23")
    assert "--batch-size" in refused(capsys, "train", "--data", train, *out, "--batch-size", "100000")
    assert "--out" in refused(capsys, "train", "--data", train)
    assert "--data" in refused(capsys, "train")
    assert "is gone" in refused(capsys, "train", "--data", str(_without_shards(scenes, tmp_path)), *out)
    assert "no run" in refused(capsys, "export", str(empty), *out)
    assert "no run" in refused(capsys, "audit", train, "--model", str(empty), *out)
    assert "say what to evaluate" in refused(capsys, "eval", "open_clip:truepair-test")
    assert "rate" in refused(capsys, "corrupt", train, "--rate", "1.5", *out)
    assert not (tmp_path / "out").exists()


def test_a_reader_that_has_enough_ends_the_command_without_a_word(tmp_path: Path) -> None:
    command = f"{sys.executable} -m truepair train --help | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=True)
    assert len(done.stdout) == 10 and not done.stderr


def _without_shards(scenes: Path, folder: Path) -> Path:
    """A pair table whose shards have been removed since."""
    shutil.copytree(scenes / "train" / "shards", folder / "moved")
    index([folder / "moved"], folder / "orphan")
    shutil.rmtree(folder / "moved")
    return folder / "orphan"


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-size", "0"],
        ["--batch-size", "-4"],
        ["--epochs", "0"],
        ["--lr", "nan"],
        ["--lr", "-1"],
        ["--seed", "-1"],
        ["--pairs.max-p-noise", "nan"],
        ["--log.every", "0"],
        ["--log.keep-checkpoints", "0"],
        ["--pairs.block", "0"],
        ["--pairs.captions", "0"],
        ["--pairs.crop-scale", "0", "0"],
        ["--noise.average", "1"],
        ["--optim.accumulation", "0"],
        ["--workers", "-2"],
        ["--eval.zeroshot", "nowhere"],
        ["--eval.retrieval", "nowhere"],
        ["--method", "gate", "--options.power", "-1"],
    ],
    ids=" ".join,
)
def test_senseless_settings_are_refused_before_anything_is_written(
    flags: list[str], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    refused(capsys, "train", "--data", str(scenes / "train"), "--out", str(out), *QUICK, *flags)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["index", "corrupt", "train", "audit", "export"])
def test_an_out_below_a_file_costs_one_line(
    verb: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    out = ["--out", str(tmp_path / "file" / "below")]
    table = str(scenes / "train")
    argv = {
        "index": [str(scenes / "train" / "shards")],
        "corrupt": [table],
        "train": ["--data", table, "--epochs", "1", *QUICK],
        "audit": [table, "--model", "open_clip:truepair-test", "--workers", "0"],
        "export": ["no-run"],
    }[verb]
    refused(capsys, verb, *argv, *out)


def test_an_error_in_a_decoding_process_ends_the_command_with_one_line(scenes: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(scenes / "train" / "shards", shards)
    index([shards], tmp_path / "table")
    for shard in shards.iterdir():
        shard.write_bytes(b"")  # there, but nothing of it can be read
    argv = ["train", "--data", str(tmp_path / "table"), "--out", str(tmp_path / "run"), *QUICK]
    argv[argv.index("--workers") + 1] = "1"
    done = subprocess.run([sys.executable, "-m", "truepair", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("truepair: ")]
    assert len(said) == 1 and "cannot be read" in said[0] and "Traceback" not in done.stderr


def test_a_result_that_is_no_number_is_null_in_json(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = PairTable.open(scenes / "train").derive(tmp_path / "clean")
    clean.add_column("is_noise", np.zeros(len(clean), bool), {})
    argv = ["eval", "open_clip:truepair-test", "--noise", str(clean.path), "--workers", "0", "--device", "cpu"]
    assert run(capsys, *argv)["results"][0]["metrics"]["auroc"] is None


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train --epoch 3", "--epochs"),
        ("train --epochs three", "'three'"),
        ("train --method", "--method"),
        ("train --precision half", "'bf16'"),
        ("audit table --worst 3", "--model"),
        ("audit table --model run --out audit --worse 3", "--worst"),
        ("audit table --outt audit", "--outt"),
        ("corrupt table more --out noisy", "more"),
        ("data paintings --out data", "'scenes'"),
        ("export --out", "--out"),
    ],
)
def test_wrong_flags_cost_one_line_that_names_what_is_wrong(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *command.split())
    assert told in line and f"truepair {command.split()[0]} --help" in line
    assert not set(line) & set("│─╭╰")


def test_what_is_no_box_is_said_whole() -> None:
    assert one_line("Error: no such thing\n") == "Error: no such thing"


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_that_parse(verb: str) -> None:
    kind, _ = VERBS[verb]
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    examples = [line for line in lines if line.startswith("  ") and f"truepair {verb} " in line]
    assert examples
    for example in examples:
        argv = shlex.split(example.split(f"truepair {verb} ")[1])
        args = parse_train(argv) if verb == "train" else parsed(kind, verb, argv)
        assert isinstance(args, kind)


def test_an_interrupted_verb_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "export", (VERBS["export"][0], lambda args: {"interrupted": True}))
    with pytest.raises(SystemExit) as ended:
        main(["export", "run", "--out", "model", "--json"])
    assert ended.value.code == 130
    assert json.loads(capsys.readouterr().out) == {"interrupted": True}


@pytest.mark.parametrize(
    ("said", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_threads_sleep_soon_while_they_wait_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], spins: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == spins
