"""Writing a pair table as a stream: rows in blocks of bounded size, duplicate keys found, skips noted."""

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from truepair.pairs.columns import STREAM_ROWS
from truepair.pairs.sources.sample import Sample, Scalar, Skip
from truepair.pairs.table import PAIRS, SCHEMA, Source

LABEL = "label"


class SeenKeys:
    """All keys so far as sorted runs of 64-bit digests, each run at least twice the next: 8 bytes a key.

    Two different keys of 100 M share a digest with a probability of 3e-4; the second would count as a duplicate.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def are_new(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) True where a key was in no earlier call and not before in `keys`."""
        digests = np.frombuffer(b"".join(blake2b(k.encode(), digest_size=8).digest() for k in keys), np.uint64)
        new = np.zeros(len(keys), np.bool_)
        new[np.unique(digests, return_index=True)[1]] = True
        for run in self._runs:
            new &= run[np.minimum(np.searchsorted(run, digests), len(run) - 1)] != digests
        if new.any():
            self._runs.append(np.sort(digests[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
        return new


class TableWriter:
    """Writes pairs.parquet, columns/ and skipped.jsonl into an empty folder, 65,536 rows at a time.

    Attributes: `rows` written, `skipped` count per reason, `sources` in order of first use, `members` read.
    """

    def __init__(self, folder: Path, extra_columns: Sequence[str] = ()) -> None:
        self.rows = 0
        self.members = 0
        self.skipped: Counter[str] = Counter()
        self.sources: dict[Source, int] = {}
        self._folder = folder
        self._seen = SeenKeys()
        self._block: list[tuple[Sample, int, int, int, str]] = []
        self._labelled = False
        self._kinds: dict[str, set[type]] = {name: set() for name in extra_columns}
        (folder / "columns").mkdir(parents=True)
        self._pairs = pq.ParquetWriter(folder / PAIRS, SCHEMA)
        self._columns = {LABEL: self._writer(LABEL, pa.int64())}
        self._columns |= {name: self._writer(name, pa.string()) for name in extra_columns}
        self._log = (folder / "skipped.jsonl").open("w")

    def _writer(self, name: str, kind: pa.DataType) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._folder / "columns" / f"{name}.parquet", pa.schema([(name, kind)]))

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in (self._pairs, *self._columns.values(), self._log):
            file.close()

    def add(self, sample: Sample, width: int, height: int, sha: str) -> None:
        """Take a pair as the next row, unless its key turns out to be a duplicate."""
        self.members += sample.members
        self._block.append((sample, len(sample.image), width, height, sha))
        sample.image = b""
        if len(self._block) == STREAM_ROWS:
            self._flush()

    def skip(self, skip: Skip) -> None:
        """Note a pair, or a part of one, that is left out."""
        self.members += skip.members
        self.skipped[skip.reason] += 1
        line = {"source": skip.source, "key": skip.key, "reason": skip.reason, "detail": skip.detail}
        self._log.write(json.dumps(line) + "\n")

    def finish(self) -> list[Source]:
        """Write what is left and close; extra columns take the type of their values. Gives the sources, by number."""
        self._flush()
        self.__exit__(None, None, None)
        if not self._labelled:
            (self._folder / "columns" / f"{LABEL}.parquet").unlink()
        for name, kinds in self._kinds.items():
            if kinds and kinds <= {int, float}:
                self._to_numbers(name, pa.int64() if kinds == {int} else pa.float64())
        return list(self.sources)

    def _flush(self) -> None:
        block, self._block = self._block, []
        if not block:
            return
        new = self._seen.are_new([sample.key for sample, *_ in block])
        for taken, (sample, *_) in zip(new, block, strict=True):
            if not taken:
                self.skip(Skip(sample.source.path, sample.key, "duplicate key", members=0))
        block = [item for taken, item in zip(new, block, strict=True) if taken]
        samples = [sample for sample, *_ in block]
        place = self.sources
        self._pairs.write_table(
            pa.table(
                {
                    "row": np.arange(self.rows, self.rows + len(block)),
                    "key": [sample.key for sample in samples],
                    "source": [place.setdefault(sample.source, len(place)) for sample in samples],
                    "offset": [sample.offset for sample in samples],
                    "size": [size for _, size, _, _, _ in block],
                    "path": [sample.path for sample in samples],
                    "caption": [sample.captions for sample in samples],
                    "width": [width for _, _, width, _, _ in block],
                    "height": [height for _, _, _, height, _ in block],
                    "sha": [sha for *_, sha in block],
                },
                SCHEMA,
            )
        )
        labels = [sample.label for sample in samples]
        self._labelled |= any(label != -1 for label in labels)
        self._columns[LABEL].write_table(pa.table({LABEL: pa.array(labels, pa.int64())}))
        for name, kinds in self._kinds.items():
            values = [sample.extra.get(name) for sample in samples]
            kinds |= {type(value) for value in values if value is not None}
            self._columns[name].write_table(pa.table({name: pa.array(map(_written, values), pa.string())}))
        self.rows += len(block)

    def _to_numbers(self, name: str, kind: pa.DataType) -> None:
        """Rewrite a column of written numbers as numbers; where a pair has none, -1 or NaN."""
        path = self._folder / "columns" / f"{name}.parquet"
        partial = path.with_name(f".{name}.partial")
        schema = pa.schema([(name, kind)])
        with pq.ParquetFile(path) as file, pq.ParquetWriter(partial, schema) as writer:
            for batch in file.iter_batches(STREAM_ROWS):
                text = batch.column(0)
                text = pc.if_else(pc.equal(text, ""), "-1" if pa.types.is_integer(kind) else "nan", text)
                writer.write_table(pa.table([text.cast(kind)], schema))
        partial.replace(path)


def _written(value: Scalar) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)
