"""Captions by a tiny BLIP-2, or by a run's captioner, become columns; nothing on the way changes or loses one."""

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_captioners import CONCEPTS, SHOWN, live_captioner, save_run

import truepair
from truepair.annotate import parts
from truepair.annotate.caption import Captioned, caption_table
from truepair.cli.caption import Caption, caption
from truepair.errors import UserError
from truepair.models.image_to_text import Captioner, Decoding, open_captioner
from truepair.models.likeness import Judge
from truepair.models.run_captioner import RunCaptioner, open_run_captioner
from truepair.pairs.index import index
from truepair.pairs.table import PairTable

SHORT = Decoding(n=2, min_tokens=1, max_tokens=6)


@pytest.fixture(scope="module")
def blip2(captioner_folders: dict[str, Path]) -> Captioner:
    return open_captioner(f"hf:{captioner_folders['blip2']}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", live_captioner())


@pytest.fixture
def own(run: Path) -> RunCaptioner:
    return open_run_captioner(run)


@pytest.fixture
def table(scenes: Path) -> PairTable:
    return PairTable.open(scenes / "test")


def captioned(
    table: PairTable, captioner: Captioner | RunCaptioner, out: Path, **changes: Any
) -> tuple[Captioned, list[list[str]]]:
    result = caption_table(table, captioner, out, **({"decoding": SHORT} | changes))
    assert result is not None
    column = PairTable.open(out).captions(result.column)
    return result, [column[row] for row in range(len(table))]


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".mmap" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_captions_become_a_column_beside_the_raw_ones(table: PairTable, blip2: Captioner, tmp_path: Path) -> None:
    result, lists = captioned(table, blip2, tmp_path / "out", seed=4)
    new = PairTable.open(tmp_path / "out")
    assert (result.looked_at, result.rows, result.captions) == (51, 51, sum(map(len, lists))) and not result.skipped
    assert all(1 <= len(texts) <= 2 and all(0 < len(text.split()) <= 6 for text in texts) for texts in lists)
    assert new.caption_column == "caption" and [new.captions()[i] for i in range(51)] == [
        table.captions()[i] for i in range(51)
    ]
    made = new.made["synthetic"]
    assert made["model"] == blip2.name and made["seed"] == 4 and made["versions"]["truepair"] == truepair.__version__
    assert made["decoding"] == {
        **{"method": "nucleus", "n": 2, "top_p": 0.9, "temperature": 1.0, "min_tokens": 1, "max_tokens": 6}
    }
    image = Image.open(io.BytesIO(table.image_bytes(7))).convert("RGB")
    alone = blip2.generate(blip2.preparer([image]), np.array([7]), SHORT, 4)
    assert alone == [lists[7]]


def test_workers_and_batch_size_change_no_caption(table: PairTable, blip2: Captioner, tmp_path: Path) -> None:
    _, alone = captioned(table, blip2, tmp_path / "alone", batch_size=51)
    for workers, batch_size in ((2, 51), (0, 7)):
        assert captioned(table, blip2, tmp_path / str(workers), workers=workers, batch_size=batch_size)[1] == alone


def test_only_pairs_in_doubt_are_captioned(table: PairTable, blip2: Captioner, tmp_path: Path) -> None:
    p_noise = np.linspace(0, 1, 51, dtype=np.float32)
    p_noise[50] = np.nan
    doubted = table.derive(tmp_path / "doubted")
    doubted.add_column("p_noise", p_noise, {})
    result, lists = captioned(doubted, blip2, tmp_path / "out", min_p_noise=0.7)
    assert [row for row, texts in enumerate(lists) if texts] == list(range(35, 50)) and result.looked_at == 15
    everything = captioned(table, blip2, tmp_path / "all")[1]
    assert lists[35:50] == everything[35:50]
    with pytest.raises(UserError, match="no column 'p_noise'"):
        captioned(table, blip2, tmp_path / "none", min_p_noise=0.7)
    with pytest.raises(UserError, match="--min-p-noise nan"):
        captioned(doubted, blip2, tmp_path / "none", min_p_noise=float("nan"))


@pytest.fixture
def strange(tmp_path: Path) -> PairTable:
    """Images of all kinds; a truncated one (2) and one that vanishes after indexing (4)."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    shapes = [(40, 60, 3), (1, 1, 3), (64, 64, 3), (3, 200, 3), (20, 20, 3), (30, 30, 4)]
    for i, shape in enumerate(shapes):
        Image.fromarray(draw.integers(0, 255, shape, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    whole = (folder / "2.png").read_bytes()
    index([folder], tmp_path / "strange")
    (folder / "2.png").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    (folder / "4.png").unlink()
    return PairTable.open(tmp_path / "strange")


def test_images_that_cannot_be_read_are_counted_and_named(strange: PairTable, blip2: Captioner, tmp_path: Path) -> None:
    result, lists = captioned(strange, blip2, tmp_path / "out", batch_size=4)
    assert result.skipped == {"missing or changed file": 1, "unreadable image": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped-caption.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        strange.strings("key")[row]: reason
        for row, reason in enumerate(["", "", "unreadable image", "", "missing or changed file", ""])
        if reason
    }
    assert [bool(texts) for texts in lists] == [True, True, False, True, False, True]


def test_one_image_that_a_models_preparation_refuses_costs_no_other(
    strange: PairTable, blip2: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = captioned(strange, blip2, tmp_path / "wanted")
    prepare = type(blip2.preparer).__call__

    def strict(self: Any, images: Any) -> Any:
        if any(image.size[0] > 60 * image.size[1] for image in images):
            raise ValueError("absolute aspect ratio must be smaller than 60")
        return prepare(self, images)

    monkeypatch.setattr(type(blip2.preparer), "__call__", strict)
    result, lists = captioned(strange, blip2, tmp_path / "out")
    assert result.skipped["image unfit for the captioner"] == 1
    assert lists == [[] if row == 3 else texts for row, texts in enumerate(wanted)]

    def broken(self: Any, images: Any) -> Any:
        raise ValueError("nothing fits")

    monkeypatch.setattr(type(blip2.preparer), "__call__", broken)
    with pytest.raises(UserError, match="nothing fits"):
        captioned(strange, blip2, tmp_path / "broken")


def test_images_that_are_all_gone_are_an_error(strange: PairTable, blip2: Captioner, tmp_path: Path) -> None:
    for file in (tmp_path / "images").glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"rows 0 to 5 gave a caption \(missing or changed file\)"):
        captioned(strange, blip2, tmp_path / "out")


def test_rows_the_model_has_nothing_to_say_about_are_counted(
    table: PairTable, blip2: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = blip2.generate
    silent = lambda inputs, rows, *more: [  # noqa: E731
        [] if row == 9 else texts for row, texts in zip(rows, generate(inputs, rows, *more), strict=True)
    ]
    monkeypatch.setattr(blip2, "generate", silent)
    result, lists = captioned(table, blip2, tmp_path / "out")
    assert result.skipped == {"captioner wrote nothing": 1} and result.rows == 50 and not lists[9]


def test_a_table_of_other_settings_is_not_gone_on_with(
    table: PairTable, blip2: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.Parts, "finish", lambda *_: None)  # as if killed before
    assert caption_table(table, blip2, tmp_path / "out", decoding=SHORT) is None
    with pytest.raises(UserError, match=r"synthetic\.seed 0 \(now 1\)"):
        caption_table(table, blip2, tmp_path / "out", decoding=SHORT, seed=1)
    weight = next(blip2.model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[-1] += 1
    with pytest.raises(UserError, match=r"synthetic\.weights '\w+' \(now '\w+'\)"):
        caption_table(table, blip2, tmp_path / "out", decoding=SHORT)
    with torch.no_grad():
        weight.copy_(before)
    assert caption_table(table, blip2, tmp_path / "out", decoding=SHORT) is None


def test_a_pass_over_doubtful_pairs_is_not_gone_on_with_when_the_doubts_are_others(
    table: PairTable, blip2: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubted = table.derive(tmp_path / "doubted")
    doubted.add_column("p_noise", np.linspace(0, 1, 51, dtype=np.float32), {})
    monkeypatch.setattr(parts.Parts, "finish", lambda *_: None)  # as if killed before
    caption_table(doubted, blip2, tmp_path / "out", decoding=SHORT, min_p_noise=0.9)
    doubted.add_column("p_noise", np.linspace(1, 0, 51, dtype=np.float32), {})
    with pytest.raises(UserError, match=r"synthetic\.content\.p_noise '\w+' \(now '\w+'\)"):
        caption_table(doubted, blip2, tmp_path / "out", decoding=SHORT, min_p_noise=0.9)


def test_a_damaged_shard_does_not_stop_a_pass_that_goes_on_at_it(
    table: PairTable, blip2: Captioner, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHUNK", 20)
    shutil.copytree(scenes / "test", tmp_path / "copy")
    damaged = PairTable.open(tmp_path / "copy")
    with damaged.source_path(0).open("r+b") as shard:
        for row in range(20, 40):
            assert damaged.numbers("source")[row] == 0
            shard.seek(int(damaged.numbers("offset")[row]))
            shard.write(bytes(int(damaged.numbers("size")[row])))
    result, wanted = captioned(damaged, blip2, tmp_path / "undisturbed")
    assert result.skipped == {"unreadable image": 20} and all(wanted[:20]) and not any(wanted[20:40])
    write = parts.Parts.write
    with monkeypatch.context() as killed:
        killed.setattr(parts.Parts, "write", lambda self, rows, *more: 1 / 0 if rows[0] else write(self, rows, *more))
        with pytest.raises(ZeroDivisionError):
            captioned(damaged, blip2, tmp_path / "out")
    captioned(damaged, blip2, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def lists_of(table: PairTable, name: str) -> list[list[str]]:
    return [table.captions(name)[row] for row in range(len(table))]


def cosines(captioner: RunCaptioner, table: PairTable, row: int, texts: list[str]) -> list[float]:
    """By the run's towers alone, one image and one text at a time."""
    image = Image.open(io.BytesIO(table.image_bytes(row))).convert("RGB")
    model = captioner.towers
    with torch.no_grad():
        seen = model.encode_image(captioner.preparer([image])["pixels"])
        return [float(seen @ model.encode_text(model.tokenize([text])).T) for text in texts]


def test_a_runs_captions_come_with_concepts_scores_and_who_wrote_them(
    table: PairTable, own: RunCaptioner, run: Path, tmp_path: Path
) -> None:
    result, lists = captioned(table, own, tmp_path / "out", seed=4)
    new = PairTable.open(tmp_path / "out")
    assert set(new.column_names) - set(table.column_names) == {
        *("synthetic", "synthetic_score", "synthetic_raw_score", "synthetic_rejected", "synthetic_concepts")
    }
    for row, (texts, concepts) in enumerate(zip(lists, lists_of(new, "synthetic_concepts"), strict=True)):
        assert texts and len(concepts) == SHOWN and set(concepts) <= set(CONCEPTS)
        best, best_raw = (max(cosines(own, table, row, of)) for of in (texts, table.captions()[row]))
        np.testing.assert_allclose(new.numbers("synthetic_score")[row], best, atol=2e-5)
        np.testing.assert_allclose(new.numbers("synthetic_raw_score")[row], best_raw, atol=2e-5)
    assert not any(lists_of(new, "synthetic_rejected")) and result.rejected == 0
    better = new.numbers("synthetic_score") >= new.numbers("synthetic_raw_score")
    assert (result.judged, result.better) == (51, int(better.sum())) and 0 < better.sum() < 51
    made = new.made["synthetic"]
    assert (made["model"], made["step"], made["concepts_per_image"]) == (str(run), 24, SHOWN)
    assert (made["accept"], made["seed"], made["prompt"]) == ("all", 4, "") and made["weights"]
    assert all(new.made[name] == made for name in new.made if name.startswith("synthetic"))


@pytest.mark.parametrize("margin", [0.0, 0.5])  # logits
def test_only_captions_no_worse_than_the_best_raw_one_are_accepted_and_the_others_are_kept_apart(
    table: PairTable, own: RunCaptioner, tmp_path: Path, margin: float
) -> None:
    _, everything = captioned(table, own, tmp_path / "all")
    result, kept = captioned(table, own, tmp_path / "better", accept="better", margin=margin)
    before, new = PairTable.open(tmp_path / "all"), PairTable.open(tmp_path / "better")
    rejected = lists_of(new, "synthetic_rejected")
    for row in range(len(table)):
        raw = max(cosines(own, table, row, table.captions()[row])) + margin / own.towers.scale.item()
        scores = cosines(own, table, row, everything[row])
        assert kept[row] == [text for text, score in zip(everything[row], scores, strict=True) if score >= raw]
        assert rejected[row] == [text for text in everything[row] if text not in kept[row]]
    left = [row for row, texts in enumerate(kept) if not texts]
    close = sum(new.numbers("synthetic_score")[row] >= new.numbers("synthetic_raw_score")[row] for row in left)
    reasons = {"better than the raw caption by less than the margin": close}
    reasons["no better than the raw caption"] = len(left) - close
    assert 0 < len(left) < 51 and result.skipped == {why: count for why, count in reasons.items() if count}
    lines = [json.loads(line) for line in (tmp_path / "better" / "skipped-caption.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == left
    assert result.rejected == sum(map(len, rejected)) and result.rows == 51 - len(left)
    assert lists_of(new, "caption") == lists_of(table, "caption")
    for name in ("synthetic_score", "synthetic_raw_score"):  # of the best written one, whether kept or not
        assert (new.numbers(name) == before.numbers(name)).all()


def test_a_caption_that_says_what_the_raw_one_says_is_accepted(
    table: PairTable, own: RunCaptioner, tmp_path: Path
) -> None:
    _, written = captioned(table, own, tmp_path / "all")
    known = table.derive(tmp_path / "known")
    known.add_column("said", [texts[-1:] for texts in written], {})
    result, kept = captioned(known, own, tmp_path / "out", accept="better", raw="said")
    assert all(texts[-1] in left for texts, left in zip(written, kept, strict=True)) and result.better == 51


def test_a_pair_without_raw_captions_keeps_what_is_written_and_one_not_looked_at_has_no_score(
    table: PairTable, own: RunCaptioner, tmp_path: Path
) -> None:
    doubted = table.derive(tmp_path / "doubted")
    doubted.add_column("p_noise", (np.arange(51) % 2).astype(np.float32), {})
    doubted.add_column("few", [["", "  "] if row % 3 else ["a ring"] for row in range(51)], {})
    result, lists = captioned(doubted, own, tmp_path / "out", min_p_noise=0.5, accept="better", raw="few")
    new = PairTable.open(tmp_path / "out")
    looked, has_raw = np.arange(51) % 2 == 1, np.arange(51) % 3 == 0
    assert (np.isfinite(new.numbers("synthetic_score")) == looked).all()
    assert (np.isfinite(new.numbers("synthetic_raw_score")) == (looked & has_raw)).all()
    assert all(lists[row] for row in np.flatnonzero(looked & ~has_raw)) and result.judged == (looked & has_raw).sum()
    assert not any(lists[row] for row in np.flatnonzero(~looked))
    doubted.add_column("few", [["a star"]] * 51, {})
    with pytest.raises(UserError, match="no column 'nothing'"):
        captioned(doubted, own, tmp_path / "none", raw="nothing")


def test_a_judge_compares_what_an_external_captioner_writes(
    table: PairTable, blip2: Captioner, own: RunCaptioner, tmp_path: Path
) -> None:
    _, alone = captioned(table, blip2, tmp_path / "alone")
    judge = Judge(own.towers)
    result, lists = captioned(table, blip2, tmp_path / "judged", judge=judge, workers=1)
    new = PairTable.open(tmp_path / "judged")
    assert lists == alone and "synthetic_concepts" not in new.column_names and result.judged == 51
    for row in (0, 17, 50):
        np.testing.assert_allclose(
            new.numbers("synthetic_score")[row], max(cosines(own, table, row, lists[row])), atol=2e-5
        )
    assert new.made["synthetic"]["judge"]["model"] == own.towers.name
    _, kept = captioned(table, blip2, tmp_path / "better", judge=judge, accept="better")
    assert any(kept) and kept != alone and all(set(a) <= set(b) for a, b in zip(kept, alone, strict=True))
    with pytest.raises(UserError, match="--accept better compares captions by two towers"):
        captioned(table, blip2, tmp_path / "none", accept="better")


def test_scores_of_captions_that_are_overwritten_do_not_stay_behind(
    table: PairTable, blip2: Captioner, own: RunCaptioner, tmp_path: Path
) -> None:
    captioned(table, own, tmp_path / "out", accept="better")
    former = PairTable.open(tmp_path / "out")
    with pytest.raises(UserError, match=r"synthetic_concepts, synthetic_raw_score, .* of captions overwritten"):
        captioned(former, blip2, tmp_path / "next", overwrite=True)
    captioned(former, own, tmp_path / "next", overwrite=True)
    assert not any(lists_of(PairTable.open(tmp_path / "next"), "synthetic_rejected"))


def test_captions_of_other_raw_ones_or_another_rule_are_not_gone_on_with(
    table: PairTable, own: RunCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = table.derive(tmp_path / "other")
    other.add_column("few", [["a ring"]] * 51, {})
    monkeypatch.setattr(parts.Parts, "finish", lambda *_: None)  # as if killed before
    assert caption_table(other, own, tmp_path / "out", decoding=SHORT) is None
    with pytest.raises(UserError, match=r"synthetic\.accept 'all' \(now 'better'\)"):
        caption_table(other, own, tmp_path / "out", decoding=SHORT, accept="better")
    with pytest.raises(UserError, match=r"synthetic\.content\.raw captions '\w+' \(now '\w+'\)"):
        caption_table(other, own, tmp_path / "out", decoding=SHORT, raw="few")
    assert caption_table(other, own, tmp_path / "out", decoding=SHORT) is None


def test_a_run_that_trains_on_is_left_as_it_was(table: PairTable, run: Path, tmp_path: Path) -> None:
    live = live_captioner()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _, lists = captioned(table, live, tmp_path / "live", workers=1, batch_size=51)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in live.model.modules())
    assert captioned(table, open_run_captioner(run), tmp_path / "saved", batch_size=51)[1] == lists


def halting_at_the_third_part(replace: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Renames as `replace`, but stops for ever before it gives the third part its name, and says so."""

    def halting(self: Path, target: Path) -> Path:
        if target.name == "part-0000002.parquet":
            (target.parent / "halted").touch()
            signal.pause()
        return replace(self, target)

    return halting


def in_process(args: Caption, **environment: str) -> Any:
    """Run the verb in a forked process with that much more environment."""

    def run() -> None:
        os.environ.update(environment)
        caption(args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.mark.parametrize(("most", "least"), [(3, 3), (30, 5)])
def test_a_least_number_of_tokens_that_nobody_gave_is_no_hindrance_to_short_captions(
    table: PairTable, captioner_folders: dict[str, Path], tmp_path: Path, most: int, least: int
) -> None:
    args = Caption(table.path, f"hf:{captioner_folders['blip2']}", tmp_path / "out", max_tokens=most, workers=0)
    caption(dataclasses.replace(args, device="cpu"))
    decoding = PairTable.open(tmp_path / "out").made["synthetic"]["decoding"]
    assert (decoding["min_tokens"], decoding["max_tokens"]) == (least, most)
    for wrong in (0, -2):
        with pytest.raises(UserError, match=f"--max-tokens {wrong} makes no sense"):
            caption(dataclasses.replace(args, max_tokens=wrong))
    with pytest.raises(UserError, match="--min-tokens 40 makes no sense"):
        caption(dataclasses.replace(args, min_tokens=40))


@pytest.mark.parametrize("by", ["hf", "run"])
def test_killed_and_gone_on_with_by_two_ranks_it_ends_in_the_same_bytes(
    table: PairTable,
    captioner_folders: dict[str, Path],
    run: Path,
    by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "CHUNK", 4)
    flags: dict[str, Any] = {"n": 2, "min_tokens": 1, "max_tokens": 6, "batch_size": 3, "workers": 0, "device": "cpu"}
    if by == "run":
        flags |= {"accept": "better"}
    model = str(run) if by == "run" else f"hf:{captioner_folders['blip2']}"
    whole = Caption(table.path, model, tmp_path / "whole", **flags)
    assert caption(whole)["looked_at"] == 51
    killed = dataclasses.replace(whole, out=tmp_path / "killed")
    with monkeypatch.context() as slow:
        slow.setattr(Path, "replace", halting_at_the_third_part(Path.replace))
        process = in_process(killed)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("killed.parts/halted")):
        assert time.monotonic() < until and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list(tmp_path.glob("killed.parts/part-*"))) == 2

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    killed.workers = 1
    ranks = [in_process(killed, RANK=rank, LOCAL_RANK=rank, **meet) for rank in "01"]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
