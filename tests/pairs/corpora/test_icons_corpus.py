"""The icons corpus, made of a tiny package: which sets are drawn, what is held out; nothing touches the network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_read import members, pairs_of, tree

from truepair.errors import UserError
from truepair.pairs.corpora import icons, packages
from truepair.pairs.corpora.icons import SETS, choose_sets, make_icons
from truepair.pairs.corpora.packages import CorpusUnavailable

pytest.importorskip("resvg_py")


def path(width: int, colour: str = "currentColor") -> dict[str, str]:
    return {"body": f'<path fill="{colour}" d="M0 0h{width}v16H0z"/>'}


def info(licence: str = "MIT", **more: object) -> dict[str, Any]:
    author = {"name": "A. Artist", "url": "https://example.org"}
    return {"name": "A set", "author": author, "license": {"title": licence, "spdx": licence}, "category": "UI", **more}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a package of icon sets already, and an npm that must not run."""
    sets: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "held": (info(), {"home": path(8), "bell": path(6), "only-here": path(3)}, {}),
        "held-solid": (info(), {"home": path(7)}, {}),
        "two": (info("Apache-2.0"), {"home-filled": path(9), "home": path(10), "star": path(8)}, {}),
        "three": (
            info("CC-BY-4.0"),
            {"bell": path(5, "red"), "home": path(10), "torn": {"body": "<path d="}, "key": path(10)},
            {"ring": {"parent": "bell"}},
        ),
        "viral": (info("GPL-3.0"), {"home": path(11)}, {}),
        "share": (info("CC-BY-SA-4.0"), {"home": path(11)}, {}),
        "paid": (info("CC-BY-NC-4.0"), {"home": path(11)}, {}),
        "brands": (info(category="Logos"), {"home": path(11)}, {}),
        "old": (info(hidden=True), {"home": path(11)}, {}),
    }
    folder = tmp_path / "cache" / "npm" / SETS.folder
    (folder / "json").mkdir(parents=True)
    (folder / "collections.json").write_text(json.dumps({name: about for name, (about, _, _) in sets.items()}))
    for name, (about, bodies, aliases) in sets.items():
        (folder / "json" / f"{name}.json").write_text(json.dumps({"info": about, "icons": bodies, "aliases": aliases}))

    def must_not_run(*_: object) -> None:
        raise AssertionError("npm was run")

    monkeypatch.setattr(packages, "_npm_pack", must_not_run)
    return tmp_path / "cache"


def make(out: Path, cache: Path, **more: Any) -> Any:
    return make_icons(out, cache=cache, size=16, held_out=("held",), **more)


def test_only_permissive_current_sets_of_pictures_are_drawn_and_the_others_named(cache: Path) -> None:
    chosen, refused = choose_sets(cache / "npm" / SETS.folder)
    assert sorted(chosen) == ["held", "three", "two"]
    assert {name: reason.split(",")[0] for name, reason in refused.items()} == {
        "held-solid": "taken for a style of held",
        "viral": "licence GPL-3.0",
        "share": "licence CC-BY-SA-4.0",
        "paid": "licence CC-BY-NC-4.0",
        "brands": "category Logos",
        "old": "hidden by Iconify",
    }


def test_a_set_without_a_licence_is_not_drawn(cache: Path) -> None:
    file = cache / "npm" / SETS.folder / "json" / "two.json"
    data = json.loads(file.read_text())
    del data["info"]["license"]
    file.write_text(json.dumps(data))
    assert choose_sets(cache / "npm" / SETS.folder)[1]["two"] == "licence unknown"


def test_held_out_sets_are_in_no_training_pair_neither_by_name_nor_by_picture(cache: Path, tmp_path: Path) -> None:
    summary = make(tmp_path / "out", cache)
    train, test = pairs_of(tmp_path / "out" / "train"), pairs_of(tmp_path / "out" / "test" / "held")
    assert sorted(note["key"] for note, _ in train) == ["three_bell", "three_home", "three_key"]
    assert [note["key"] for note, _ in test] == ["held_home", "held_bell", "held_only-here"]
    tested = {pixels.tobytes() for _, pixels in test}
    assert not any(pixels.tobytes() in tested for _, pixels in train)
    reasons = {skipped.key: skipped.reason for skipped in summary.skipped}
    assert reasons["two_star"] == "the very picture of a held-out icon: held_home"
    assert reasons["two_home"] == "the very picture of one of the same name: three_home"
    assert reasons["three_torn"].startswith("cannot be drawn")


def test_a_label_numbers_the_concept_in_all_tables(cache: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", cache)
    parts = (tmp_path / "out" / "train", tmp_path / "out" / "test" / "held")
    notes = [note for part in parts for note, _ in pairs_of(part)]
    labels = {(note["concept"], note["label"]) for note in notes}
    assert len({label for _, label in labels}) == len({concept for concept, _ in labels}) == len(labels) == 4
    assert next(note for note in notes if note["key"] == "three_bell")["captions"] == ["bell", "ring"]
    assert all(note["style"] == note["icon"].partition(":")[0] for note in notes)


def test_zero_shot_classes_are_the_held_out_concepts_that_training_has(cache: Path, tmp_path: Path) -> None:
    summary = make(tmp_path / "out", cache)
    zeroshot = tmp_path / "out" / "zeroshot" / "held"
    assert (zeroshot / "classnames.txt").read_text().splitlines() == ["bell", "home"]
    assert members(zeroshot / "test" / "0.tar").keys() == {
        *("held_home.png", "held_home.cls", "held_bell.png", "held_bell.cls"),
    }
    assert members(zeroshot / "test" / "0.tar")["held_home.cls"] == b"1"
    assert [(part.name, part.pairs, part.classes) for part in summary.held_out] == [("held", 3, 2)]
    assert (summary.train, summary.test, summary.classes) == (3, 3, 2)


def test_what_has_no_colour_is_black_on_white_and_what_has_one_keeps_it(cache: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", cache)
    pixels = {note["key"]: image for note, image in pairs_of(tmp_path / "out" / "train")}
    assert (pixels["three_key"][:, :10] == 0).all() and (pixels["three_key"][:, 10:] == 255).all()
    assert np.array_equal(np.unique(pixels["three_bell"].reshape(-1, 3), axis=0), [[255, 0, 0], [255, 255, 255]])


def test_every_set_is_credited_and_every_set_left_out_is_named(cache: Path, tmp_path: Path) -> None:
    summary = make(tmp_path / "out", cache)
    credits = (tmp_path / "out" / "LICENSES.md").read_text()
    assert "| two | A. Artist | Apache-2.0 |" in credits and "* viral: licence GPL-3.0" in credits
    assert {(note.name, note.licence, note.pairs) for note in summary.styles} == {
        *{("held", "MIT", 3), ("two", "Apache-2.0", 0), ("three", "CC-BY-4.0", 3)},
    }


def test_the_corpus_is_the_same_from_cache_and_from_workers_and_progress_is_told(cache: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    make(tmp_path / "a", cache, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 9) for i in range(1, 10)]
    make(tmp_path / "b", cache)
    (cache / "corpora").rename(cache / "away")
    make(tmp_path / "c", cache, workers=2)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b and a | {"corpus.json": b""} == c | {"corpus.json": b""}


def test_an_interrupted_making_leaves_nothing_under_a_final_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(icons, "write_zeroshot", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", cache)
    assert not (tmp_path / "out").exists() and tree(cache / "corpora") == {}


def test_an_unknown_set_to_hold_out_and_a_damaged_package_are_said_in_a_line(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no icon set 'viral' to hold out: choose among held, three, two"):
        make_icons(tmp_path / "out", cache=cache, size=16, held_out=("viral",))
    (cache / "npm" / SETS.folder / "json" / "two.json").write_text('{"icons": ')
    with pytest.raises(CorpusUnavailable, match="cannot be read"):
        make(tmp_path / "out", cache)
