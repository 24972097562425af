"""A pair table with known noise: its captions corrupted in a new column, the truth beside them."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from truepair.errors import UserError
from truepair.noise.injection import Kind, corrupt
from truepair.pairs.table import PairTable, new_folder

TRUTH = "is_noise"  # the column of the truth, where a table has it: whether a caption really fits no more


@dataclass(frozen=True)
class CorruptedTable:
    """What `corrupt_table` made: nominal is the share of rows chosen, effective the share that really fits no more."""

    table: Path
    caption_column: str
    rows: int
    nominal: float
    effective: float


def corrupt_table(table: PairTable, out: str | Path, kind: Kind, rate: float, seed: int) -> CorruptedTable:
    """Derive `out` from `table` with noise of one kind in round(rate · n) of its rows; images are not touched.

    New columns: `caption_KIND` (then in force), `is_noise` (the truth: the caption fits no more), `chosen` (nominal)
    and `caption_from` (row whose captions are here now, -1: edited). `out` appears when the table is whole.
    Raises UserError as `noise.corrupt` does, and if `out` is a file or not empty.
    """
    out = Path(out)
    if TRUTH in table.column_names:
        raise UserError(f"{table.path} holds known noise already (column {TRUTH}); corrupt the clean table instead")
    with new_folder(out) as staging:
        stored = table.captions()
        captions = [stored[row] for row in range(len(stored))]
        made = corrupt(captions, table.groups("sha"), kind, rate, seed)
        column = f"caption_{kind}"
        how = {"verb": "corrupt", "kind": kind, "rate": rate, "seed": seed, "nominal": made.nominal}
        how |= {"effective": made.effective, "captions": table.caption_column}
        new = table.derive(staging)
        new.add_column(column, pa.array(made.captions, pa.list_(pa.string())), how)
        new.add_column(TRUTH, made.is_noise, how)
        new.add_column("chosen", made.chosen, how)
        new.add_column("caption_from", made.source, how)
        new.caption_column = column
        new.save()
    return CorruptedTable(out, column, len(table), made.nominal, made.effective)
