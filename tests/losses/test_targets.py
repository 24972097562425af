"""Targets, tile by tile, are the matrices that a loop over all pairs writes down."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.losses import Dense, Groups, Own, Tile
from truepair.losses.tiles import Side

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def tile(rows: slice, columns: slice, pairs: int, captions: int = 1, dtype: torch.dtype = torch.float32) -> Tile:
    """Of a batch of `pairs` images, each with `captions` columns."""
    return Tile.of(Side(rows, 1, pairs), Side(columns, captions, pairs), rows, torch.device("cpu"), dtype)


@given(rows=LABELS, columns=LABELS, data=st.data())
@settings(deadline=None, max_examples=60)
def test_groups_make_every_column_of_the_rows_group_a_positive(
    rows: list[int], columns: list[int], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    block = tile(slice(start, stop), slice(0, len(columns)), len(rows))
    for normalise in (True, False):
        wanted = [
            [float(group == column) / (max(columns.count(group), 1) if normalise else 1) for column in columns]
            for group in rows[start:stop]
        ]
        got = Groups(torch.tensor(rows), torch.tensor(columns), normalise).tile(block)
        torch.testing.assert_close(got, torch.tensor(wanted))


@given(pairs=st.integers(1, 9), captions=st.integers(1, 3), cut=st.integers(1, 26))
@settings(deadline=None, max_examples=30)
def test_a_target_cut_into_tiles_of_columns_is_the_whole_target(pairs: int, captions: int, cut: int) -> None:
    columns = pairs * captions
    every, cut = slice(0, pairs), min(cut, columns)
    matrix = torch.arange(pairs * columns).view(pairs, columns).float()
    labels = torch.arange(columns) % 4
    for target in (Own(), Own(normalise=False), Groups(labels[:pairs], labels), Dense(matrix)):
        whole = target.tile(tile(every, slice(0, columns), pairs, captions))
        parts = []
        for part in (slice(0, cut), slice(cut, columns)):
            found = target.tile(tile(every, part, pairs, captions))
            parts.append(torch.zeros(pairs, part.stop - part.start) if found is None else found)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_target_is_made_in_the_precision_of_the_logits() -> None:
    block = tile(slice(0, 1), slice(0, 3), 1, 3, torch.float64)
    for target in (Own(), Groups(torch.tensor([4]), torch.tensor([4, 4, 4]))):
        assert target.tile(block).tolist() == [[1 / 3, 1 / 3, 1 / 3]]


def test_own_marks_the_columns_of_the_rows_pair_and_says_nothing_where_there_are_none() -> None:
    block = tile(slice(3, 5), slice(4, 10), 6, captions=2)
    assert Own().tile(block).tolist() == [[0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
    assert Own().tile(tile(slice(0, 2), slice(4, 10), 6, captions=2)) is None


def test_a_queue_belongs_to_no_pair() -> None:
    queue = tile(slice(0, 3), slice(5, 9), 3, captions=2)
    assert queue.column_pairs.tolist() == [2, -1, -1, -1] and queue.own.sum() == 1
    assert not tile(slice(0, 3), slice(6, 9), 3, captions=2).crosses
