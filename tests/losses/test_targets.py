"""Targets, tile by tile, are the matrices that a loop over all pairs writes down."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truepair.losses import Dense, Groups, Own, Tile

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def tile(rows: slice, columns: slice, row_pairs: list[int], column_pairs: list[int]) -> Tile:
    return Tile(rows, columns, torch.tensor(row_pairs)[rows], torch.tensor(column_pairs)[columns])


@given(rows=LABELS, columns=LABELS, data=st.data())
@settings(deadline=None, max_examples=60)
def test_groups_make_every_column_of_the_rows_group_a_positive(
    rows: list[int], columns: list[int], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    block = tile(slice(start, stop), slice(0, len(columns)), rows, columns)
    for normalise in (True, False):
        wanted = [
            [float(group == column) / (max(columns.count(group), 1) if normalise else 1) for column in columns]
            for group in rows[start:stop]
        ]
        got = Groups(torch.tensor(rows), torch.tensor(columns), normalise).tile(block)
        torch.testing.assert_close(got, torch.tensor(wanted))


@given(rows=LABELS, columns=LABELS, cut=st.integers(0, 12))
@settings(deadline=None, max_examples=30)
def test_a_target_cut_into_tiles_of_columns_is_the_whole_target(rows: list[int], columns: list[int], cut: int) -> None:
    cut = min(cut, len(columns))
    every = slice(0, len(rows))
    parts = [slice(0, cut), slice(cut, len(columns))]
    matrix = torch.arange(len(rows) * len(columns)).view(len(rows), len(columns)).float()
    for target in (Own(0.5), Groups(torch.tensor(rows), torch.tensor(columns)), Dense(matrix)):
        whole = target.tile(tile(every, slice(0, len(columns)), rows, columns))
        cuts = torch.cat([target.tile(tile(every, part, rows, columns)) for part in parts], dim=1)
        torch.testing.assert_close(cuts, whole)


def test_a_target_is_made_in_the_precision_of_the_logits() -> None:
    block = Tile(slice(0, 1), slice(0, 3), torch.tensor([0]), torch.tensor([0, 0, 0]), torch.float64)
    for target in (Own(1 / 3), Groups(torch.tensor([4]), torch.tensor([4, 4, 4]))):
        assert target.tile(block).tolist() == [[1 / 3, 1 / 3, 1 / 3]]


def test_own_marks_the_columns_of_the_rows_pair_with_its_share() -> None:
    block = tile(slice(0, 2), slice(0, 6), [3, 4], [2, 2, 3, 3, 4, 4])
    assert Own(share=0.5).tile(block).tolist() == [[0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
