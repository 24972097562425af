"""A pass over a table ends in the same bytes, whatever stopped it, whoever shared it; or says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from truepair.annotate import parts as module
from truepair.annotate.parts import Finished, Parts
from truepair.errors import UserError
from truepair.pairs.table import PairTable

CHUNK = 50  # six chunks of 256 rows, the last one of 6
MADE = {"digit": {"by": "test", "base": 10}, "names": {"by": "test"}}


@pytest.fixture(scope="module")
def table(scenes: Path) -> PairTable:
    return PairTable.open(scenes / "train")


def opened(table: PairTable, out: Path, **changes: Any) -> Parts:
    return Parts.open(table, out, MADE, **({"chunk": CHUNK} | changes))


def work(parts: Parts, chunks: int = 99) -> int:
    """Do up to so many chunks; gives the rows done."""
    done = 0
    for _, rows in zip(range(chunks), parts.todo(), strict=False):
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


@pytest.mark.parametrize("worlds", [(1, 1, 1), (3, 2, 1), (2, 7)])
def test_any_ranks_that_stop_and_go_on_end_in_the_same_bytes(
    table: PairTable,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    worlds: tuple[int, ...],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(module.dist, "barrier", lambda: None)
    for i, world in enumerate(worlds):
        monkeypatch.setattr(module, "world_size", lambda world=world: world)
        seen: list[int] = []
        monkeypatch.setattr(
            module, "_same_on_all_ranks", lambda missing, seen=seen: seen or seen.extend(missing) or seen
        )
        for rank in range(world):
            monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
            assert work(opened(table, out), 1 if i < len(worlds) - 1 else 99) <= 256
    monkeypatch.setattr(module, "_same_on_all_ranks", lambda missing: missing)
    for rank in reversed(range(worlds[-1])):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        parts = opened(table, out)
        assert (parts.done, parts.share) == (256, 0)
        assert (parts.finish("skipped-test.jsonl") is None) == (rank > 0)
    assert content(out) == undisturbed


class Killed(BaseException):
    pass


def test_a_kill_between_any_two_steps_of_the_end_costs_nothing(
    table: PairTable, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return call(*args, **kwargs)

        return step

    for owner, name in [(Path, "replace"), (Path, "unlink"), (Path, "touch"), (shutil, "rmtree"), (shutil, "copy2")]:
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    steps = 0
    while True:
        steps += 1
        out = tmp_path / str(steps) / "out"
        left = 0
        work(opened(table, out))
        left = steps
        try:
            opened(table, out).finish("skipped-test.jsonl")
            break
        except Killed:
            left = 0
            again = opened(table, out)
            assert again.share == 0
            finished = again.finish("skipped-test.jsonl")
            assert finished is not None and sum(finished.skipped.values()) == 26
        assert content(out) == undisturbed and [f.name for f in out.parent.iterdir()] == ["out"]
    assert steps > 20


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


def test_an_output_that_is_taken_is_refused_before_the_work(table: PairTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        opened(table, tmp_path / "file")
    with pytest.raises(UserError, match="not empty"):
        opened(table, tmp_path)
    with pytest.raises(UserError, match="cannot write beside"):
        opened(table, tmp_path / "file" / "out")


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
