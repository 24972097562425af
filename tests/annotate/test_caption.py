"""Captions by a real (tiny) BLIP-2 become a column; nothing that happens on the way changes or loses one."""

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

import truepair
from truepair.annotate import parts
from truepair.annotate.caption import Captioned, caption_table
from truepair.cli.caption import Caption, caption
from truepair.errors import UserError
from truepair.models.image_to_text import Captioner, Decoding, open_captioner
from truepair.pairs.index import index
from truepair.pairs.table import PairTable

SHORT = Decoding(n=2, min_tokens=1, max_tokens=6)


@pytest.fixture(scope="module")
def blip2(captioner_folders: dict[str, Path]) -> Captioner:
    return open_captioner(f"hf:{captioner_folders['blip2']}")


@pytest.fixture
def table(scenes: Path) -> PairTable:
    return PairTable.open(scenes / "test")


def captioned(table: PairTable, captioner: Captioner, out: Path, **changes: Any) -> tuple[Captioned, list[list[str]]]:
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


def test_killed_and_gone_on_with_by_two_ranks_it_ends_in_the_same_bytes(
    table: PairTable, captioner_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHUNK", 4)
    flags: dict[str, Any] = {"n": 2, "min_tokens": 1, "max_tokens": 6, "batch_size": 3, "workers": 0, "device": "cpu"}
    whole = Caption(table.path, f"hf:{captioner_folders['blip2']}", tmp_path / "whole", **flags)
    assert caption(whole)["rows"] == 51
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
