"""What the cells train on: the corpus, its corrupted tables, the published lists of which rows are corrupted how."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from truepair import __version__
from truepair.bench.cells import Cell, Pairs
from truepair.bench.digests import of_table
from truepair.bench.grid import Grid
from truepair.errors import UserError, reason
from truepair.noise.tables import TRUTH, corrupt_table
from truepair.pairs.columns import whole, write_parquet
from truepair.pairs.corpora.tables import Corpus, join_tables, make_tables
from truepair.pairs.table import PairTable

JOINED = ("concept", "style")  # columns that all corpora have which are joined
DRAWN = b"truepair.bench"  # the key of a noise list's own account of itself, in its Parquet metadata


@dataclass(frozen=True)
class NoiseList:
    """A published list: where it lies, relative to the bench's directory, and what it says of itself."""

    file: str
    kind: str
    rate: float
    seed: int
    pairs: int  # of the whole table
    corrupted: int  # rows in the list
    mismatched: int  # of these, those whose caption really fits no more
    corpus: str  # digest of images and captions before
    result: str  # the same after
    truepair: str


def corpus_of(grid: Grid, work: Path) -> Path:
    """The folder with the corpus' tables, made under WORK/corpus if it is one that is made and is not there.

    Several corpora, "icons+emoji", lie in WORK/corpus/NAME, and WORK/corpus/train has the pairs of all.
    Raises UserError if the corpus cannot be had, or if WORK/corpus is another one.
    """
    folder, names = work / "corpus", grid.made
    if not names:
        return _given(grid, work)
    asked = {"corpus": grid.corpus, **asdict(grid.corpus_options)}
    note, options = work / "corpus.json", grid.corpus_options
    parts = {name: folder / name if len(names) > 1 else folder for name in names}
    if note.is_file() and all((part / "train" / "table.json").is_file() for part in parts.values()):
        if (found := json.loads(note.read_text())) != asked:
            raise UserError(f"{folder} holds {found}, grid {grid.name} asks for {asked}; choose another --out")
    else:
        for name, part in parts.items():
            make_tables(name, part, n=options.n, seed=options.seed, size=options.size)  # type: ignore[arg-type]
        note.write_text(json.dumps(asked) + "\n")
    if len(parts) > 1 and not _sound(folder / "train"):
        shutil.rmtree(folder / "train", ignore_errors=True)
        join_tables([part / "train" / "shards" for part in parts.values()], folder / "train", JOINED)
    return folder


def training_table(grid: Grid, work: Path) -> Path:
    """The table of a corpus that is there. Raises UserError if it is not."""
    return (work / "corpus" if grid.made else _given(grid, work)) / grid.table


def _given(grid: Grid, work: Path) -> Path:
    """The folder of a corpus that is not made here."""
    folders = Path(grid.corpus), work / "corpus"  # the second: made by hand, or by a truepair that makes it
    for folder in folders:
        if (folder / grid.table / "table.json").is_file():
            return folder
    raise UserError(
        f"grid {grid.name}: corpus {grid.corpus!r} is none that this truepair makes ({', '.join(get_args(Corpus))}), "
        f"and there is no pair table {' or '.join(str(folder / grid.table) for folder in folders)}"
    )


def prepared(grid: Grid, cell: Cell, corpus: Path, work: Path) -> Pairs:
    """The pairs of a cell. What is not there is made: WORK/tables/NOISE-SEED and its list in WORK/noise.

    Raises UserError if a list is there already and the noise drawn now is another.
    """
    clean = PairTable.open(corpus / grid.table)
    if not cell.rate:
        rows = _with_caption(clean)
        return Pairs(corpus / grid.table, None, of_table(clean), len(rows), len(rows))
    name = f"{cell.noise}-{cell.seed}"
    folder, file = work / "tables" / name, work / "noise" / f"{name}.parquet"
    if not _sound(folder):
        shutil.rmtree(folder, ignore_errors=True)
        corrupt_table(clean, folder, cell.kind, cell.rate, cell.seed)  # type: ignore[arg-type]
    table = PairTable.open(folder)
    _publish(clean, table, cell, file)
    truth = table.numbers(TRUTH).astype(np.bool_)
    rows = _with_caption(table)
    matched = rows[~truth[rows]]
    keep = work / "tables" / f"{name}-matched.parquet"
    write_parquet(keep, {"row": matched})
    return Pairs(folder, keep, of_table(table), len(rows), len(matched))


def read_list(file: Path, work: Path) -> NoiseList:
    """What a published list says of itself. Raises UserError if it says nothing."""
    try:
        said = json.loads((pq.read_schema(file).metadata or {})[DRAWN])
        return NoiseList(**said | {"file": str(file.relative_to(work))})
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file} is no noise list of truepair bench: {reason(error)}") from None


def _publish(clean: PairTable, table: PairTable, cell: Cell, file: Path) -> None:
    """Write the list of a corrupted table, or see that the one that is there is the same."""
    chosen = np.flatnonzero(table.numbers("chosen"))
    columns = {
        "row": chosen,
        "caption_from": table.numbers("caption_from")[chosen],
        "is_noise": table.numbers(TRUTH)[chosen],
    }
    noisy = int(columns["is_noise"].sum())
    counts = (len(table), len(chosen), noisy)
    said = NoiseList("", cell.kind, cell.rate, cell.seed, *counts, of_table(clean), of_table(table), __version__)
    if file.exists():
        _compare(file, read_list(file, file.parent), said, columns)
        return
    account: dict[str, Any] = {name: value for name, value in asdict(said).items() if name != "file"}
    arrow = pa.table(columns).replace_schema_metadata({DRAWN: json.dumps(account).encode()})
    with whole(file) as partial:
        pq.write_table(arrow, partial)


def _compare(file: Path, published: NoiseList, drawn: NoiseList, columns: dict[str, Any]) -> None:
    """Raise UserError unless a published list is what was drawn now."""
    if (published.corpus, published.pairs) != (drawn.corpus, drawn.pairs):
        raise UserError(
            f"{file} was drawn for another corpus ({published.pairs:,} pairs, {published.corpus}) than this one "
            f"({drawn.pairs:,} pairs, {drawn.corpus}): bring that corpus, or remove the list to publish your own"
        )
    try:
        there = pq.read_table(file).select(list(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file} is no noise list of truepair bench: {reason(error)}") from None
    same = all(np.array_equal(there.column(name).to_numpy(), values) for name, values in columns.items())
    if not same or published.result != drawn.result:
        raise UserError(
            f"{file} was drawn by truepair {published.truepair}; {drawn.truepair} draws other noise for {drawn.kind} "
            f"{drawn.rate:g}, seed {drawn.seed}: install that version, or remove the list and the cells made with it"
        )


def _sound(folder: Path) -> bool:
    """Whether a corrupted table is whole and finds its images where it says (a bench's directory may have moved)."""
    if not (folder / "table.json").is_file():
        return False
    table = PairTable.open(folder)
    return all(table.source_path(number).exists() for number in range(len(table.sources)))


def _with_caption(table: PairTable) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows that a run takes: those with a caption."""
    return np.flatnonzero(table.captions().counts > 0).astype(np.int64)
