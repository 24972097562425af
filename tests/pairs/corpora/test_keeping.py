"""A corpus made once: what several processes that make it at the same moment leave behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from shards_read import tree

from truepair.errors import UserError
from truepair.pairs.corpora.keeping import kept_corpus
from truepair.pairs.corpora.shards import CorpusSummary, staged, write_note

SUMMARY = CorpusSummary(1, 2, 3, (), (), 0.0)


def make(out: Path, cache: Path, meanwhile: Callable[[], object] = lambda: None) -> CorpusSummary:
    """A corpus of two files, with something else happening between them."""

    def build(stage: Path, content: bytes) -> CorpusSummary:
        for part in ("test", "train"):
            (stage / part).mkdir()
            (stage / part / "file").write_bytes(content)
            meanwhile()
        return SUMMARY

    return kept_corpus(out, cache, "some-1", lambda: b"x", build)


def finished(folder: Path) -> bool:
    content = tree(folder)
    return content.keys() == {"corpus.json", "test/file", "train/file"} and content["train/file"] == b"x"


def test_makers_of_one_corpus_at_the_same_moment_all_get_it(tmp_path: Path) -> None:
    others = iter(["b", "c"])
    made = make(tmp_path / "a", tmp_path / "cache", lambda: make(tmp_path / next(others), tmp_path / "cache"))
    assert made.train == 1
    assert all(finished(tmp_path / out) for out in "abc")
    assert [path.name for path in (tmp_path / "cache" / "corpora").iterdir()] == ["some-1"]


def test_a_corpus_that_was_kept_first_stays(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "corpora" / "some-1"

    def other() -> None:
        if not kept.exists():
            make(tmp_path / "b", tmp_path / "cache")
            (kept / "train" / "file").chmod(0o400)

    make(tmp_path / "a", tmp_path / "cache", other)
    assert (kept / "train" / "file").stat().st_mode & 0o777 == 0o400


def test_what_lies_unfinished_in_the_cache_is_made_anew(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "corpora" / "some-1"
    (kept / "train").mkdir(parents=True)
    (kept / "train" / "torn").write_bytes(b"")
    make(tmp_path / "out", tmp_path / "cache")
    assert finished(tmp_path / "out") and finished(kept)


def test_a_kept_corpus_can_be_read_by_whoever_reads_other_folders_here(tmp_path: Path) -> None:
    make(tmp_path / "out", tmp_path / "cache")
    modes = {(tmp_path / "cache" / "corpora" / name).stat().st_mode for name in ("", "some-1")}
    assert len(modes) == 1


def test_a_maker_that_fails_leaves_nothing_and_takes_nothing_away(tmp_path: Path) -> None:
    def fails() -> None:
        make(tmp_path / "b", tmp_path / "cache")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        make(tmp_path / "a", tmp_path / "cache", fails)
    assert not (tmp_path / "a").exists() and finished(tmp_path / "b")
    make(tmp_path / "c", tmp_path / "cache", lambda: pytest.fail("it is kept"))
    assert finished(tmp_path / "c")


def put(stage: Path, identity: str, content: bytes) -> None:
    (stage / "train").mkdir()
    (stage / "train" / "file").write_bytes(content)
    write_note(stage, SUMMARY, identity)


def test_of_two_who_fill_one_folder_with_the_same_the_first_is_left_in_peace(tmp_path: Path) -> None:
    with staged(tmp_path / "out", "same") as slow:
        with staged(tmp_path / "out", "same") as quick:
            put(quick, "same", b"quick")
        put(slow, "same", b"slow")
    content = tree(tmp_path / "out")
    assert content["train/file"] == b"quick" and content.keys() == {"corpus.json", "train/file"}


def test_of_two_who_fill_one_folder_with_different_corpora_the_second_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another corpus"), staged(tmp_path / "out", "one") as slow:
        with staged(tmp_path / "out", "other") as quick:
            put(quick, "other", b"quick")
        put(slow, "one", b"slow")
    content = tree(tmp_path / "out")
    assert content["train/file"] == b"quick" and content.keys() == {"corpus.json", "train/file"}
