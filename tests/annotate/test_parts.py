"""A pass over a table ends in the same bytes, whatever stopped it, whoever shared it; or says what is wrong."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from truepair.annotate import parts as module
from truepair.annotate import sharing
from truepair.annotate.parts import Finished, Parts, Stopped
from truepair.errors import UserError
from truepair.pairs.table import PairTable

CHUNK = 50  # six chunks of 256 rows, the last one of 6
MADE = {"digit": {"by": "test", "base": 10}, "names": {"by": "test"}}


@pytest.fixture(scope="module")
def table(scenes: Path) -> PairTable:
    return PairTable.open(scenes / "train")


def opened(table: PairTable, out: Path, **changes: Any) -> Parts:
    return Parts.open(table, out, MADE, **({"chunk": CHUNK} | changes))


def work(parts: Parts, chunks: int = 99, stop: Callable[[], bool] | None = None) -> int:
    """Do up to so many chunks; gives the rows done."""
    done = 0
    for _, rows in zip(range(chunks), parts.todo(stop), strict=False):
        names = pa.array([["x"] * (row % 3) for row in rows.tolist()], pa.list_(pa.string()))
        skipped = [(row, "odd one" if row % 2 else "round one") for row in rows.tolist() if row % 20 in (0, 7)]
        parts.write(rows, {"digit": rows % 10, "names": names}, skipped)
        done += len(rows)
    return done


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".mmap" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(table: PairTable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    parts = opened(table, out)
    assert work(parts) == 256
    parts.finish("skipped-test.jsonl")
    return content(out)


def test_the_new_table_has_every_value_in_its_row_and_names_the_skipped(table: PairTable, tmp_path: Path) -> None:
    parts = opened(table, tmp_path / "out")
    assert (parts.total, parts.done, parts.share) == (256, 0, 256)
    work(parts)
    finished = parts.finish("skipped-test.jsonl")
    assert isinstance(finished, Finished)
    new = PairTable.open(tmp_path / "out")
    assert (new.numbers("digit") == np.arange(256) % 10).all()
    assert [new.captions("names")[row] for row in range(256)] == [["x"] * (row % 3) for row in range(256)]
    named = [row for row in range(256) if row % 20 in (0, 7)]
    assert finished.skipped == {
        "odd one": sum(row % 2 for row in named),
        "round one": sum(1 - row % 2 for row in named),
    }
    assert new.made["digit"] == {"by": "test", "base": 10, "skipped": finished.skipped}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped-test.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == named
    assert all(line["key"] == table.strings("key")[line["row"]] for line in lines)
    assert new.caption_column == table.caption_column and [f.name for f in tmp_path.iterdir()] == ["out"]
    assert new.image_bytes(3) == table.image_bytes(3)


class Ranks:
    """Plays the ranks of a job one after another, the first one first, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch, self.said = monkeypatch, [None]
        monkeypatch.setattr(module.dist, "barrier", lambda: None)
        monkeypatch.setattr(sharing.dist, "broadcast_object_list", self.broadcast)

    def broadcast(self, box: list[Any]) -> None:
        if module.rank() == 0:
            self.said = list(box)
        box[:] = self.said

    def be(self, rank: int, world: int) -> None:
        for place in (module, sharing):
            self.patch.setattr(place, "rank", lambda: rank)
            self.patch.setattr(place, "world_size", lambda: world)


@pytest.mark.parametrize("worlds", [(1, 1, 1), (3, 2, 1), (2, 7)])
def test_any_ranks_that_stop_and_go_on_end_in_the_same_bytes(
    table: PairTable,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    worlds: tuple[int, ...],
) -> None:
    out, ranks = tmp_path / "out", Ranks(monkeypatch)
    for i, world in enumerate(worlds):
        for rank in range(world):
            ranks.be(rank, world)
            assert work(opened(table, out), 1 if i < len(worlds) - 1 else 99) <= 256
    job = []
    for rank in range(worlds[-1]):
        ranks.be(rank, worlds[-1])
        job.append(opened(table, out))
        assert (job[-1].done, job[-1].share) == (256, 0)
    for rank in reversed(range(worlds[-1])):
        ranks.be(rank, worlds[-1])
        assert (job[rank].finish("skipped-test.jsonl") is None) == (rank > 0)
    assert content(out) == undisturbed


def test_every_rank_stops_where_the_first_one_must_or_has_other_inputs(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(monkeypatch)
    ranks.be(0, 2)
    first = opened(table, tmp_path / "out")
    ranks.be(1, 2)
    with pytest.raises(UserError, match=r"rank 0 has other inputs than rank 1: digit\.base 10 \(now 8\)"):
        Parts.open(table, tmp_path / "out", MADE | {"digit": {"by": "test", "base": 8}}, chunk=CHUNK)
    work(first, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    for rank in range(2):
        ranks.be(rank, 2)
        with pytest.raises(UserError, match="not empty"):
            opened(table, tmp_path / "out")


@pytest.mark.parametrize(("asked", "kept"), [(1, 0), (2, 4), (3, 6)])
def test_ranks_ask_equally_often_whether_to_stop_and_keep_their_parts(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, kept: int
) -> None:
    ranks, questions = Ranks(monkeypatch), []
    for rank in range(4):  # six chunks: two for either of the first two ranks, one for the others
        ranks.be(rank, 4)
        before = len(questions)

        def stop(before: int = before) -> bool:
            questions.append(None)
            return len(questions) - before == asked

        with pytest.raises(Stopped) if asked < 3 else contextlib.nullcontext():
            work(opened(table, tmp_path / "out"), stop=stop)
        assert len(questions) - before == min(asked, 2)
    assert len(list((tmp_path / "out.parts").glob("part-*"))) == kept


def test_a_pass_that_was_told_to_stop_leaves_its_folder_to_others(table: PairTable, tmp_path: Path) -> None:
    parts = opened(table, tmp_path / "out")
    with pytest.raises(Stopped):
        work(parts, stop=lambda: True)
    assert in_another_process(lambda: opened(table, tmp_path / "out")) == ""


class Killed(BaseException):
    pass


class Mortal:
    """Dies at one of its changes of the file system, and does nothing any more from there on, nor cleans up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.last = 0, sys.maxsize
        for name in ("replace", "unlink", "rmdir", "mkdir", "link"):
            monkeypatch.setattr(os, name, self.guarded(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", lambda _: None)  # a dead process is no power cut

    def guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.steps > self.last:
                raise Killed
            return call(*args, **kwargs)

        return step

    def live(self, steps: int, call: Callable[[], Any]) -> None:
        """Call it, and die after so many steps if it has more."""
        self.steps, self.last = 0, steps
        with contextlib.suppress(Killed):
            call()
        self.last = sys.maxsize


def test_two_kills_between_any_steps_of_the_end_cost_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PairTable.open(scenes / "test")

    def end(out: Path) -> None:
        again = opened(table, out)
        assert again.share == 0
        finished = again.finish("skipped-test.jsonl")
        assert finished is not None and sum(finished.skipped.values()) == 6

    def ended(out: Path) -> bool:
        """Whether only what is of no use to anybody was left to remove."""
        return (out / "table.json").exists() and not (out.parent / "out.parts" / "whole").exists()

    mortal, begun = Mortal(monkeypatch), tmp_path / "begun" / "out"
    work(opened(table, begun))
    shutil.copytree(begun.parent, tmp_path / "undisturbed")
    mortal.live(sys.maxsize, lambda: end(tmp_path / "undisturbed" / "out"))
    undisturbed, steps = content(tmp_path / "undisturbed" / "out"), mortal.steps
    assert steps > 15
    for kills in [(first, second) for first in range(steps) for second in range(first % 7, steps, 7)]:
        out = tmp_path / "killed" / "out"
        shutil.copytree(begun.parent, out.parent)
        for after in kills:
            if not ended(out):
                mortal.live(after, lambda out=out: end(out))
        if not ended(out):
            end(out)
        assert content(out) == undisturbed, f"killed after {kills}"
        shutil.rmtree(out.parent)


def test_parts_of_another_pass_are_refused_in_words(table: PairTable, scenes: Path, tmp_path: Path) -> None:
    Parts.open(table, tmp_path / "out", {"digit": {}})  # came to nothing, so nothing would be lost
    work(opened(table, tmp_path / "out"), 2)
    with pytest.raises(
        UserError, match=r"out\.parts was begun with digit\.base 10 \(now 8\); go on with that, or remove"
    ):
        Parts.open(table, tmp_path / "out", MADE | {"digit": {"by": "test", "base": 8}}, chunk=CHUNK)
    with pytest.raises(UserError, match="rows 256"):
        opened(PairTable.open(scenes / "test"), tmp_path / "out")
    assert opened(table, tmp_path / "out").done == 2 * CHUNK


@pytest.mark.parametrize("text", ["", "{", "[]", '{"columns": 3}', "null", "\0\0\0"])
def test_a_note_of_what_was_begun_that_cannot_be_read_is_named(table: PairTable, tmp_path: Path, text: str) -> None:
    work(opened(table, tmp_path / "out"), 2)
    note = tmp_path / "out.parts" / "pass.json"
    note.write_text(text)
    with pytest.raises(UserError, match=r"pass\.json, which .* is damaged or missing; remove .*out\.parts"):
        opened(table, tmp_path / "out")
    note.unlink()
    with pytest.raises(UserError, match="is damaged or missing"):
        opened(table, tmp_path / "out")


def test_a_damaged_part_is_named_and_made_again_once_it_is_removed(
    table: PairTable, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    parts = opened(table, tmp_path / "out")
    work(parts)
    part = tmp_path / "out.parts" / "part-0000003.parquet"
    for length in (0, 7, part.stat().st_size - 3):
        part.write_bytes(part.read_bytes()[:length])
        with pytest.raises(
            UserError, match=r"part-0000003\.parquet is damaged .*; remove it and start again"
        ) as raised:
            parts.finish("skipped-test.jsonl")
        assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()
        part.unlink()
        parts = opened(table, tmp_path / "out")
        assert work(parts) == CHUNK
    parts.finish("skipped-test.jsonl")
    assert content(tmp_path / "out") == undisturbed


def in_another_process(call: Callable[[], Any]) -> str:
    """The UserError that the call ends in there, or ""."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        try:
            call()
            there.send("")
        except UserError as error:
            there.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(30)
    assert here.poll(), "it died"
    return str(here.recv())


def test_a_second_process_is_refused_until_the_first_has_ended(
    table: PairTable, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    assert in_another_process(lambda: work(opened(table, out), 1)) == ""
    parts = opened(table, out)
    assert parts.done == CHUNK, "the lock of a process that has ended binds nobody"
    work(parts, 2)
    assert "another process is at work in" in in_another_process(lambda: opened(table, out))
    assert work(opened(table, out)) == 256 - 3 * CHUNK, "in the same process there is no second pass to wait for"
    opened(table, out).finish("skipped-test.jsonl")
    assert content(out) == undisturbed
    assert "not empty" in in_another_process(lambda: opened(table, out))


def test_decoding_workers_that_outlive_a_killed_process_bind_nobody(table: PairTable, tmp_path: Path) -> None:
    pids, orphans = multiprocessing.Pipe(duplex=False)

    def leave_an_orphan() -> None:
        parts = opened(table, tmp_path / "out")
        work(parts, 1)
        if orphan := os.fork():
            orphans.send(orphan)
        else:
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=leave_an_orphan)
    process.start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # join would wait for the orphan too
    orphan = pids.recv()
    try:
        assert opened(table, tmp_path / "out").done == CHUNK
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.join(30)


def test_an_output_that_is_taken_is_refused_before_the_work(table: PairTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        opened(table, tmp_path / "file")
    with pytest.raises(UserError, match="not empty"):
        opened(table, tmp_path)
    with pytest.raises(UserError, match="cannot write beside"):
        opened(table, tmp_path / "file" / "out")
    with pytest.raises(UserError, match="/ cannot be a table"):
        opened(table, Path("/"))


def test_columns_that_are_there_need_overwriting(table: PairTable, tmp_path: Path) -> None:
    base = table.derive(tmp_path / "base")
    base.add_column("digit", np.zeros(256), {})
    with pytest.raises(UserError, match="has a column 'digit' already"):
        opened(base, tmp_path / "out")
    parts = opened(base, tmp_path / "out", overwrite=True)
    work(parts)
    parts.finish("log")
    assert (PairTable.open(tmp_path / "out").numbers("digit") == np.arange(256) % 10).all()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "caption", "x\n", "ä"])
def test_names_that_are_no_columns_are_refused(table: PairTable, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="column"):
        Parts.open(table, tmp_path / "out", {name: {}})
    assert not list(tmp_path.iterdir())
