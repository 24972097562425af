"""A corpus as pair tables: each part of it is a table, also those that lie deeper, and what the command says of it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_debs import made_deb
from PIL import Image

from truepair.cli import main
from truepair.errors import UserError
from truepair.pairs.corpora import tables
from truepair.pairs.corpora.openclipart import PNG, SVG
from truepair.pairs.corpora.scenes import make_scenes
from truepair.pairs.corpora.shards import CorpusSummary, HeldOut, Pair, Skipped, write_shards
from truepair.pairs.corpora.tables import join_tables
from truepair.pairs.table import PairTable


@pytest.fixture
def icons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Icons replaced by scenes, laid out as icons are."""

    def make(out: Path, **_: Any) -> CorpusSummary:
        made = make_scenes(out / "made", n=10, size=16)
        for part in ("one", "two"):
            (out / "test").mkdir(exist_ok=True)
            make_scenes(out / part, n=5, size=16)
            (out / part / "train").rename(out / "test" / part)
        (out / "made" / "train").rename(out / "train")
        skipped = (Skipped("a", "cannot be drawn: blank"), Skipped("b", "cannot be drawn: broken"))
        parts = (HeldOut("one", 5, 3), HeldOut("two", 5, 4))
        return CorpusSummary(made.train, 10, 7, (), skipped, 1.0, parts)

    monkeypatch.setattr(tables, "make_icons", make)
    monkeypatch.setitem(tables.COLUMNS, "icons", ("concept", "style"))


@pytest.mark.usefixtures("icons")
def test_train_and_every_held_out_set_are_tables_and_the_command_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "icons", "--out", str(tmp_path / "icons"), "--json"])
    assert ended.value.code == 0
    sizes = {part: len(PairTable.open(tmp_path / "icons" / part)) for part in ("train", "test/one", "test/two")}
    assert sizes == {"train": 10, "test/one": 5, "test/two": 5}
    said = capsys.readouterr()
    held_out = {"one": {"test": 5, "classes": 3}, "two": {"test": 5, "classes": 4}}
    assert json.loads(said.out)["held_out"] == held_out
    assert "one: 5 pairs, 3 zero-shot classes" in said.err and "2: cannot be drawn" in said.err


def test_packages_given_for_another_corpus_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "scenes", "--out", str(tmp_path / "out"), "--from", "a.deb", "b.deb"])
    assert ended.value.code == 2 and "--from names the packages of openclipart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unusable_package_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    debs = [str(made_deb(tmp_path / f"{name}.deb", name, {})) for name in (PNG, "cowsay")]
    with pytest.raises(SystemExit) as ended:
        main(["data", "openclipart", "--out", str(tmp_path / "out"), "--from", *debs])
    assert ended.value.code == 2 and f"{SVG} is missing" in capsys.readouterr().err


def test_joined_corpora_share_labels_exactly_where_they_share_concepts(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    concepts = {"icons": ["house", "star", "cat"], "emoji": ["star", "dog", None]}
    for corpus, named in concepts.items():
        pairs = [
            Pair(f"{corpus}{i}", picture.getvalue(), ("text",), i, {"concept": name, "style": corpus} if name else {})
            for i, name in enumerate(named)
        ]
        write_shards(pairs, tmp_path / corpus)
    table = join_tables([tmp_path / "icons", tmp_path / "emoji"], tmp_path / "all" / "train")
    label = dict(zip((table.strings("key")[row] for row in range(6)), table.numbers("label").tolist(), strict=True))
    assert label["icons1"] == label["emoji0"] and label["emoji2"] == -1
    assert len(set(label.values())) == 5 and set(label.values()) >= {-1, 0}
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["train"]
    reopened = PairTable.open(tmp_path / "all" / "train")
    assert reopened.numbers("label").tolist() == list(label.values())
    assert reopened.image_bytes(5) == picture.getvalue()
    with pytest.raises(UserError, match="there already"):
        join_tables([tmp_path / "icons"], tmp_path / "all" / "train")
