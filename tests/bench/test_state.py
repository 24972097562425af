"""What a bench keeps of each cell binds it as far as something rests on it, and what cannot be read is named."""

import os
from pathlib import Path
from typing import Any

import pytest

from truepair.bench.state import PARTS, CellFiles, Progress, whole, write_json
from truepair.errors import UserError


def test_only_settings_on_which_something_rests_bind_a_cell_that_is_not_done(tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "x")
    made = {
        "epochs": 2,
        "rerank": 4,
        "evaluate.first": "a",
        "evaluate.a.retrieval": "a",
        "evaluate.b.retrieval": "tset",
    }

    def refused(printed: dict[str, Any], changes: dict[str, Any]) -> str:
        files.save(Progress(made, printed=printed))
        try:
            files.checked(made | changes, {})
        except UserError as error:
            return str(error)
        return ""

    train = {"train": {}}
    for changes in ({"evaluate.b.retrieval": "test"}, {"rerank": 0}, {"evaluate.c.zeroshot": "c"}):
        assert not refused({}, changes) and not refused(train, changes), "nothing was measured on it yet"
        assert refused(train | {"eval": {}}, changes)
    for changes in ({"evaluate.a.retrieval": "other"}, {"evaluate.first": "b"}):
        assert not refused({}, changes)
        assert refused(train, changes), "the run has measured that set"
    assert "epochs = 2" in refused({}, {"epochs": 3})
    write_json(files.result, {name: made if name == "settings" else {} for name in PARTS})
    assert refused(train, {"rerank": 0}), "a cell that is done rests on all of them"


def test_files_of_a_cell_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "x")
    for text in ('{"settings": {}, "hue": 3}', "[]", "{"):
        files.progress.write_text(text)
        with pytest.raises(UserError, match=r"x\.progress\.json cannot be read"):
            files.load_progress()
    for text in ('{"settings": {}}', "3"):
        files.result.write_text(text)
        with pytest.raises(UserError, match=r"x\.json cannot be read"):
            files.load_result()


def test_files_are_written_by_each_process_on_its_own(tmp_path: Path) -> None:
    with whole(tmp_path / "a.json") as partial:
        assert str(os.getpid()) in partial.name
        partial.write_text("{}")
    with pytest.raises(KeyError), whole(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise KeyError
    assert (tmp_path / "a.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 1
