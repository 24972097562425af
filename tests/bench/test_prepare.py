"""What cells train on is made once, published row by row, and never silently something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from truepair.bench import prepare
from truepair.bench.cells import Cell, cells_of, config_of, settings_of
from truepair.bench.digests import of_sets
from truepair.bench.grid import Grid
from truepair.bench.prepare import corpus_of, prepared, read_list
from truepair.bench.reading import from_toml
from truepair.errors import UserError
from truepair.noise import corrupt
from truepair.pairs.subset import rows_in_use
from truepair.pairs.table import PairTable


@pytest.fixture
def work(scenes: Path, tmp_path: Path, grid: Grid) -> Path:
    """A bench's directory with the corpus in it, as if it had been made there."""
    folder = tmp_path / "work"
    shutil.copytree(scenes, folder / "corpus")
    made = {"corpus": "scenes", "n": 200, "size": 32, "seed": 0}
    (folder / "corpus.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def noisy(grid: Grid) -> Cell:
    """A cell with noise."""
    return next(cell for cell in cells_of(grid) if cell.rate)


def test_the_published_list_is_enough_to_corrupt_the_same_rows_again(grid: Grid, work: Path, noisy: Cell) -> None:
    corpus = corpus_of(grid, work)
    pairs = prepared(grid, noisy, corpus, work)
    clean, table = PairTable.open(corpus / "train"), PairTable.open(pairs.table)
    list_of = pq.read_table(work / "noise" / "shuffle-40-0.parquet").to_pydict()
    captions = [clean.captions()[row] for row in range(len(clean))]
    for row, source in zip(list_of["row"], list_of["caption_from"], strict=True):
        captions[row] = clean.captions()[source]
    assert captions == [table.captions()[row] for row in range(len(table))]
    drawn = corrupt([clean.captions()[r] for r in range(len(clean))], clean.groups("sha"), "shuffle", 0.4, 0)
    assert captions == drawn.captions
    assert [row for row, noise in zip(list_of["row"], list_of["is_noise"], strict=True) if noise] == list(
        np.flatnonzero(drawn.is_noise)
    )
    said = read_list(work / "noise" / "shuffle-40-0.parquet", work)
    assert (said.file, said.kind, said.rate, said.seed) == ("noise/shuffle-40-0.parquet", "shuffle", 0.4, 0)
    assert (said.pairs, said.corrupted) == (len(clean), round(0.4 * len(clean)))


def test_the_oracle_filter_trains_on_the_truly_matched_pairs_for_as_many_steps(
    grid: Grid, work: Path, noisy: Cell
) -> None:
    pairs = prepared(grid, noisy, corpus_of(grid, work), work)
    table = PairTable.open(pairs.table)
    kept = rows_in_use(table, str(pairs.keep))
    assert np.array_equal(kept, np.flatnonzero(~table.numbers("is_noise"))) and len(kept) == pairs.matched
    grid.train |= {"epochs": 40, "batch_size": 16}
    plain = config_of(grid, noisy, pairs, work / "run")
    oracle = config_of(grid, Cell(noisy.row, noisy.kind, noisy.rate, 0, oracle=True), pairs, work / "run")
    steps = [config.epochs * (n // 16) for config, n in ((plain, pairs.rows), (oracle, pairs.matched))]
    assert oracle.keep and not plain.keep and oracle.epochs > plain.epochs
    assert abs(steps[0] - steps[1]) <= (pairs.matched // 16) / 2, "no whole epoch nearer"


def test_a_noise_list_of_another_draw_is_refused_rather_than_replaced(
    grid: Grid, work: Path, noisy: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(grid, work)
    prepared(grid, noisy, corpus, work)
    file = work / "noise" / "shuffle-40-0.parquet"
    before = file.read_bytes()
    prepared(grid, noisy, corpus, work)
    shutil.rmtree(work / "tables")
    assert prepared(grid, noisy, corpus, work).matched and file.read_bytes() == before, "drawn again, the same"

    shutil.rmtree(work / "tables")
    table = pq.read_table(file)
    other = table.set_column(0, "row", pa.array(np.roll(table.column("row").to_numpy(), 1)))
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), file)
    monkeypatch.setattr(prepare, "__version__", "9.9")
    with pytest.raises(UserError, match=r"drawn by truepair .*; 9\.9 draws other noise for shuffle 0\.4, seed 0"):
        prepared(grid, noisy, corpus, work)
    pq.write_table(table.drop_columns("caption_from"), file)
    with pytest.raises(UserError, match="is no noise list"):
        prepared(grid, noisy, corpus, work)
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is no noise list"):
        prepared(grid, noisy, corpus, work)


def test_a_noise_list_of_another_corpus_is_said_to_be_one(grid: Grid, work: Path, noisy: Cell) -> None:
    corpus = corpus_of(grid, work)
    prepared(grid, noisy, corpus, work)
    shutil.rmtree(work / "tables")
    table = PairTable.open(corpus / "train")
    table.add_column("better", [["a caption"]] * len(table), {})
    table.caption_column = "better"
    table.save()
    with pytest.raises(UserError, match="drawn for another corpus"):
        prepared(grid, noisy, corpus, work)


def test_a_bench_that_was_moved_finds_its_images_again(grid: Grid, work: Path, noisy: Cell) -> None:
    prepared(grid, noisy, corpus_of(grid, work), work)
    moved = work.rename(work.with_name("moved"))
    pairs = prepared(grid, noisy, corpus_of(grid, moved), moved)
    assert PairTable.open(pairs.table).image_bytes(0)


def test_another_corpus_in_its_place_is_refused(work: Path, write_grid: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="choose another --out"):
        corpus_of(from_toml(write_grid({"n = 200": "n = 300"})), work)


def test_a_folder_with_tables_is_a_corpus_too(scenes: Path, tmp_path: Path, write_grid: Callable[..., Path]) -> None:
    grid = from_toml(write_grid({'corpus = "scenes"': f'corpus = "{scenes}"'}))
    assert corpus_of(grid, tmp_path / "work") == scenes
    with pytest.raises(UserError, match="none that this truepair makes"):
        corpus_of(from_toml(write_grid({'corpus = "scenes"': 'corpus = "nowhere"'})), tmp_path / "work")


def test_joined_corpora_lie_side_by_side_and_are_trained_on_together(
    scenes: Path, tmp_path: Path, write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def pretend(name: str, out: Path, **_: object) -> None:
        made.append(name)
        shutil.copytree(scenes, out)
        if name == "emoji":  # no key may stand in both
            for tar in (out / "train" / "shards").glob("*.tar"):
                tar.unlink()
            shutil.copytree(scenes / "test" / "shards", out / "train" / "shards", dirs_exist_ok=True)

    monkeypatch.setattr(prepare, "make_tables", pretend)
    grid = from_toml(write_grid({'corpus = "scenes"': 'corpus = "scenes+emoji"'}))
    work = tmp_path / "work"
    work.mkdir()
    for _ in range(2):
        corpus = corpus_of(grid, work)
        assert corpus == work / "corpus" and made == ["scenes", "emoji"]
        assert len(PairTable.open(corpus / "train")) == sum(len(PairTable.open(scenes / p)) for p in ("train", "test"))
        work = work.rename(tmp_path / "moved") if work.name == "work" else work
    assert PairTable.open(corpus / "train").image_bytes(0)


def test_settings_change_with_whatever_changes_a_result_and_with_nothing_else(
    grid: Grid, work: Path, noisy: Cell, write_grid: Callable[..., Path]
) -> None:
    pairs = prepared(grid, noisy, corpus_of(grid, work), work)

    def settings(grid: Grid) -> dict[str, object]:
        cell = next(cell for cell in cells_of(grid) if cell.rate)
        return settings_of(grid, cell, pairs, config_of(grid, cell, pairs, Path("anywhere")), {"evaluate.test": "ab"})

    def changed(**changes: str) -> set[str]:
        other = settings(from_toml(write_grid({"batch_size = 32": "\n".join(changes.values())})))
        return {name for name in other | same if other.get(name) != same.get(name)}

    same = settings(grid)
    assert not changed(more="batch_size = 32\nworkers = 3\ndevice = 'cpu'\ncheckpoint_steps = 5\nlog = { every = 2 }")
    assert changed(more="batch_size = 64") == {"batch_size"}
    assert changed(more="batch_size = 32\n[train.pairs]\nblock = 7") == {"pairs.block"}
    assert {"pairs", "rows", "corrupted.rate", "evaluate.test.zeroshot", "method", "model", "seed"} <= same.keys()
    assert same["corpus_options.n"] == 200 and same["evaluate.test"] == "ab"


def test_held_out_sets_are_known_by_what_is_in_them(grid: Grid, work: Path) -> None:
    corpus = work / "corpus"
    before = of_sets(grid, corpus)
    assert list(before) == ["evaluate.test.zeroshot.digest", "evaluate.test.retrieval.digest"]
    assert of_sets(grid, corpus.rename(work / "elsewhere")) == before
    corpus = work / "elsewhere"
    table = PairTable.open(corpus / "test")
    table.add_column("better", [["a caption"]] * len(table), {})
    table.caption_column = "better"
    table.save()
    after = of_sets(grid, corpus)
    assert {name for name in before if before[name] != after[name]} == {"evaluate.test.retrieval.digest"}
    (names,) = corpus.glob("zeroshot/classnames.txt")
    names.write_text("X" + names.read_text(encoding="utf-8"), encoding="utf-8")
    assert of_sets(grid, corpus)["evaluate.test.zeroshot.digest"] != before["evaluate.test.zeroshot.digest"]
    grid.evaluate[0].retrieval = "tset"
    with pytest.raises(UserError, match=r"grid small: held-out set 'test', retrieval: .*tset is not a pair table"):
        of_sets(grid, corpus)
