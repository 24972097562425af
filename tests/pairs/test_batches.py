"""Batches: the same from any process and any step, of uint8, with what cannot be read replaced and named."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import truepair.pairs.batches as module
from truepair.errors import UserError
from truepair.pairs import draws
from truepair.pairs.batches import Batch, BatchSource, batches
from truepair.pairs.image import decode_crop, random_crop
from truepair.pairs.order import Order
from truepair.pairs.subset import rows_in_use
from truepair.pairs.table import PairTable

TOKENIZER = open_clip.get_tokenizer("truepair-test", context_length=24)


def source(table: PairTable, rows: Any = None, batch: int = 16, groups: Any = (), **changes: Any) -> BatchSource:
    order = Order(np.arange(len(table)) if rows is None else rows, batch, seed=3, block=16, window=64, groups=groups)
    return BatchSource(table, order, TOKENIZER, 0, 32, **({"seed": 3, "crop_scale": (0.5, 1.0)} | changes))


def same(first: Batch, second: Batch) -> bool:
    tensors = [(b.rows, b.images, b.tokens, b.caption_ids, b.synthetic, *b.columns.values()) for b in (first, second)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True)) and first.skipped == second.skipped


@pytest.fixture(scope="module")
def table(scenes: Path) -> PairTable:
    return PairTable.open(scenes / "train")


@pytest.fixture
def with_broken_rows(scenes: Path, tmp_path: Path) -> Callable[[list[int]], PairTable]:
    """Makes a copy of the table whose images at the given rows are cut out of the shard, as a bad disk would."""

    def make(rows: list[int]) -> PairTable:
        shutil.copytree(scenes / "train", tmp_path / "train")
        table = PairTable.open(scenes / "train")
        kept = [source for source in table.sources if not Path(source.path).is_absolute()]
        copy = table.derive(tmp_path / "table")
        shards = sorted((tmp_path / "train" / "shards").glob("*.tar"))
        assert len(shards) == len(copy.sources) and len(kept) <= len(copy.sources)
        copy.sources = [type(s)(str(shard), s.kind) for s, shard in zip(copy.sources, shards, strict=True)]
        copy.save()
        for row in rows:
            with shards[int(table.numbers("source")[row])].open("r+b") as shard:
                shard.seek(int(table.numbers("offset")[row]))
                shard.write(bytes(int(table.numbers("size")[row])))
        return PairTable.open(tmp_path / "table")

    return make


def test_batches_do_not_depend_on_the_number_of_workers(table: PairTable) -> None:
    made = source(table, captions=2, views=2)
    alone = list(batches(made, 14, 20, workers=0))
    for workers in (1, 2):
        assert all(map(same, alone, batches(made, 14, 20, workers=workers)))


def test_a_source_travels_to_another_process_without_its_columns(table: PairTable) -> None:
    first = source(table)[0]
    sent = pickle.dumps(table)
    assert len(sent) < 2_000 and same(source(pickle.loads(sent))[0], first)


def test_a_run_can_start_at_any_step(table: PairTable) -> None:
    made = source(table)
    whole = list(batches(made, 0, 20, workers=0))
    assert len(whole) == 20
    assert all(map(same, whole[7:], batches(made, 7, 20, workers=0)))


def test_ranks_share_a_batch_without_changing_it(table: PairTable) -> None:
    whole = next(batches(source(table, captions=2), 5, 6, workers=0))
    parts = [next(batches(source(table, captions=2, rank=rank, world=4), 5, 6, workers=0)) for rank in range(4)]
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    assert torch.equal(torch.cat([part.images for part in parts], dim=1), whole.images)


def test_shapes_and_types_are_as_promised(table: PairTable) -> None:
    batch = next(batches(source(table, captions=2, views=3), 0, 1, workers=0))
    assert batch.images.shape == (3, 16, 32, 32, 3) and batch.images.dtype == torch.uint8
    assert batch.rows.shape == (16,) and batch.rows.dtype == torch.int64
    assert batch.tokens.shape[0] == 32 and batch.tokens.dtype == torch.int64


def test_pixels_are_those_of_the_rows_random_crop(table: PairTable) -> None:
    batch = next(batches(source(table), 18, 19, workers=0))  # of epoch 1: 16 steps an epoch
    rows = batch.rows.numpy()
    uniform = draws.uniform(rows, 4, 3, 1, draws.CROP, 0)
    crops = random_crop(np.full(16, 32), np.full(16, 32), uniform, (0.5, 1.0))
    for row, image, crop in zip(rows.tolist(), batch.images[0].numpy(), crops, strict=True):
        assert (image == decode_crop(table.image_bytes(row), 32, crop)).all()


def test_epochs_and_views_crop_anew(table: PairTable) -> None:
    made = source(table, views=2)
    by_row: list[dict[int, torch.Tensor]] = []
    for start in (0, 16):
        epoch = list(batches(made, start, start + 16, workers=0))
        by_row.append({int(row): b.images[:, i] for b in epoch for i, row in enumerate(b.rows)})
    assert by_row[0].keys() == by_row[1].keys()
    changed = [not torch.equal(by_row[0][row][0], by_row[1][row][0]) for row in by_row[0]]
    assert sum(changed) > 250 and sum(not torch.equal(*views) for views in by_row[0].values()) > 250


def test_tokens_are_the_rows_captions_trimmed_to_the_longest(table: PairTable) -> None:
    for batch in batches(source(table, captions=2), 0, 4, workers=0):
        assert batch.tokens.shape[1] % 8 == 0
        for i, row in enumerate(batch.rows.tolist()):
            known = [tokens[: batch.tokens.shape[1]].tolist() for tokens in TOKENIZER(table.captions()[row])]
            mine = batch.tokens[2 * i : 2 * i + 2].tolist()
            assert all(tokens in known for tokens in mine) and mine[0] != mine[1]


def test_columns_come_with_the_rows(scenes: Path, tmp_path: Path) -> None:
    table = PairTable.open(scenes / "train").derive(tmp_path / "table")
    table.add_column("score", np.arange(256, dtype=np.float32) / 7, {})
    table.add_column("feature", np.arange(512, dtype=np.float32).reshape(256, 2), {})
    batch = next(batches(source(table, columns=("score", "feature")), 3, 4, workers=0))
    assert torch.equal(batch.columns["score"], batch.rows.float() / 7)
    assert torch.equal(batch.columns["feature"][:, 1], 2 * batch.rows.float() + 1)


def test_a_subset_reads_nothing_else(table: PairTable) -> None:
    rows = np.arange(100, 180, 2)
    seen = {int(row) for b in batches(source(table, rows=rows, batch=8), 0, 10, workers=0) for row in b.rows}
    assert seen == set(rows.tolist())


def test_captions_that_pairs_share_are_counted(scenes: Path, tmp_path: Path) -> None:
    table = PairTable.open(scenes / "train").derive(tmp_path / "table")
    table.add_column("few", [[f"caption {row % 32}"] for row in range(256)], {})
    table.caption_column = "few"
    crowded = next(batches(source(table, batch=128), 0, 1, workers=0))
    assert crowded.repeated_captions == 128 - len({row % 32 for row in crowded.rows.tolist()})
    kept_apart = source(table, batch=4, groups=[table.groups("few")])
    assert next(batches(kept_apart, 0, 1, workers=0)).repeated_captions == 0
    own_twice = source(table, batch=4, groups=[table.groups("few")], captions=2)
    assert next(batches(own_twice, 0, 1, workers=0)).repeated_captions == 0


def test_synthetic_captions_follow_a_raw_one_and_ids_tell_equal_texts(scenes: Path, tmp_path: Path) -> None:
    table = PairTable.open(scenes / "train").derive(tmp_path / "table")
    table.add_column(
        "written", [[f"number {row % 8}", f"digit {row % 8}"] if row % 2 else [] for row in range(256)], {}
    )
    batch = next(batches(source(table, captions=3, synthetic="written"), 0, 1, workers=0))
    raw, written = table.captions(), table.captions("written")
    texts: list[str] = []
    for i, row in enumerate(batch.rows.tolist()):
        known = [*raw[row], *written[row]]
        tokens = TOKENIZER(known)[:, : batch.tokens.shape[1]]
        mine = [known[(tokens == own).all(dim=1).nonzero()[0]] for own in batch.tokens[3 * i : 3 * i + 3]]
        assert mine[0] in raw[row]
        assert set(mine[1:]) == set(written[row]) if row % 2 else set(mine) <= set(raw[row])
        texts += mine
    assert batch.caption_ids.shape == (48,) and len(set(texts)) < 48
    for text, number in zip(texts, batch.caption_ids, strict=True):
        assert [text == other for other in texts] == (batch.caption_ids == number).tolist()


@pytest.fixture
def completed(scenes: Path, tmp_path: Path) -> PairTable:
    """Every row has the synthetic captions "S" and "T" but for every 8th; p_noise rises from 0 to 1 in the table."""
    table = PairTable.open(scenes / "train").derive(tmp_path / "completed")
    table.add_column("written", [["S", "T"] if row % 8 else [] for row in range(256)], {})
    table.add_column("p_noise", np.linspace(0, 1, 256, dtype=np.float32), {})
    return table


SYNTHETIC = TOKENIZER(["S", "T"])[:, :8].tolist()


def test_a_batch_says_which_captions_are_synthetic(completed: PairTable) -> None:
    for completion in ("both", "sample", "replace"):
        made = source(completed, captions=2, synthetic="written", completion=completion)
        for batch in batches(made, 0, 4, workers=0):
            assert batch.synthetic.shape == (32,) and batch.synthetic.dtype == torch.bool
            assert [tokens[:8] in SYNTHETIC for tokens in batch.tokens.tolist()] == batch.synthetic.tolist()
    assert not source(completed, captions=2)[0].synthetic.any()


def test_noisy_pairs_are_completed_in_proportion_or_from_a_threshold_on(completed: PairTable) -> None:
    written = np.arange(256) % 8 > 0
    p_noise = completed.numbers("p_noise")
    count = np.zeros(256)
    made = source(completed, batch=256, synthetic="written", completion="sample")
    for batch in batches(made, 0, 40, workers=0):
        count[batch.rows.numpy()] += batch.synthetic.numpy()
    assert not count[~written].any() and count.sum() > 0
    expected = 40 * p_noise[written].sum()
    assert abs(count.sum() - expected) < 4.5 * np.sqrt((40 * p_noise * (1 - p_noise))[written].sum())

    made = source(completed, captions=2, synthetic="written", completion="replace", replace_above=0.7)
    for batch in batches(made, 0, 16, workers=0):
        rows = batch.rows.numpy()
        replaced = written[rows] & (p_noise[rows] >= np.float32(0.7))
        assert batch.synthetic.reshape(-1, 2).tolist() == [[one, one] for one in replaced.tolist()]


def test_completed_batches_are_the_same_from_any_step_process_and_rank(completed: PairTable) -> None:
    how: dict[str, Any] = {"captions": 2, "synthetic": "written", "completion": "sample"}
    whole = list(batches(source(completed, **how), 14, 20, workers=0))
    assert all(map(same, whole[3:], batches(source(completed, **how), 17, 20, workers=1)))
    parts = [source(completed, rank=rank, world=4, **how)[15] for rank in range(4)]
    assert torch.equal(torch.cat([part.synthetic for part in parts]), whole[1].synthetic)
    assert torch.equal(torch.cat([part.caption_ids for part in parts]), whole[1].caption_ids)


def test_completion_without_what_it_reads_is_refused_at_once(completed: PairTable, table: PairTable) -> None:
    with pytest.raises(UserError, match=r"name their column: --pairs\.synthetic"):
        source(completed, completion="sample")
    with pytest.raises(UserError, match=r"reads column 'p_noise', which .* has not"):
        source(table, synthetic="written", completion="replace")
    completed.add_column("p_noise", np.zeros((256, 2), np.float32), {})
    with pytest.raises(UserError, match="does not hold one number a row"):
        source(completed, synthetic="written", completion="sample")


def test_an_unreadable_image_is_replaced_by_another_pair_and_named(
    with_broken_rows: Callable[[list[int]], PairTable],
) -> None:
    broken = [5, 77, 200]
    table = with_broken_rows(broken)
    made = source(table, captions=2, columns=("width",))
    alone, helped = (list(batches(made, 0, 16, workers=workers)) for workers in (0, 1))
    assert all(map(same, alone, helped))
    assert sorted(skip.row for batch in alone for skip in batch.skipped) == broken
    assert all(skip.reason == "unreadable image" for batch in alone for skip in batch.skipped)
    for batch in alone:
        assert len(batch.rows) == 16 and not np.isin(batch.rows.numpy(), broken).any()
        whole = [tokens.tolist() for row in batch.rows.tolist() for tokens in TOKENIZER(table.captions()[row])]
        assert all(t.tolist() + [0] * (24 - len(t)) in whole for t in batch.tokens)


def test_the_stand_in_comes_from_the_rows_in_use(with_broken_rows: Callable[[list[int]], PairTable]) -> None:
    table = with_broken_rows(list(range(0, 64, 2)))
    rows = rows_in_use(table)[:64]
    for batch in batches(source(table, rows=rows, batch=32), 0, 4, workers=0):
        assert (batch.rows % 2 == 1).all() and (batch.rows < 64).all() and len(batch.skipped) >= 1


def test_a_source_that_is_gone_is_said(with_broken_rows: Callable[[list[int]], PairTable]) -> None:
    table = with_broken_rows(list(range(256)))
    with pytest.raises(UserError, match="32 images in a row cannot be read, from row"):
        next(batches(source(table), 0, 1, workers=0))


def test_no_float_is_made_of_pixels(table: PairTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels became floats")

    for name in ("float", "to", "half", "double"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    monkeypatch.setattr(module, "tokenize", lambda *_: torch.zeros(16, 8, dtype=torch.int64))
    assert source(table)[0].images.dtype == torch.uint8


def test_images_are_numbered_where_a_method_asks_for_them(table: PairTable) -> None:
    """Equal bytes, equal numbers; a table may hold anything as a hash, an empty one too."""
    groups = np.arange(len(table)) // 3
    batch = source(table, image_groups=groups)[0]
    assert batch.image_ids.tolist() == groups[batch.rows.numpy()].tolist()
    assert not source(table)[0].image_ids.any()
