"""Index speed beside plain reads of the same tars, and the cost of opening a table of a million rows.

python benchmarks/index.py speed [--pairs 20000]      # members/s on one core: index, tarfile, raw bytes
python benchmarks/index.py open [--rows 1000000]      # seconds and peak memory: open, then 512 random rows
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from truepair.pairs.columns import STREAM_ROWS
from truepair.pairs.index import index
from truepair.pairs.table import PAIRS, SCHEMA, PairTable, Source

PER_SHARD = 5_000
COLUMNS = ("offset", "size", "source", "caption")


def jpegs(count: int = 64) -> list[bytes]:
    """`count` JPEGs of 3-5 kB: smooth noise of 96 px."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        pixels = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
        images.append(buffer.getvalue())
    return images


def write_shards(folder: Path, pairs: int) -> list[Path]:
    """Tars as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt."""
    images = jpegs()
    shards = []
    for first in range(0, pairs, PER_SHARD):
        shards.append(folder / f"{first // PER_SHARD:05d}.tar")
        with tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + PER_SHARD, pairs)):
                key, caption = f"{number:09d}", f"a photo of thing {number}, seen from the left"
                facts = {
                    "caption": caption,
                    "url": f"https://example.org/{key}.jpg",
                    "key": key,
                    "width": 96,
                    "exif": "{}",
                }
                for suffix, data in (
                    ("jpg", images[number % len(images)]),
                    ("json", json.dumps(facts).encode()),
                    ("txt", caption.encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return shards


def timed(label: str, work: Callable[[], int]) -> float:
    began = time.process_time(), time.perf_counter()
    members = work()
    cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
    print(f"{label:42s} {members:8,d} members  {wall:6.2f} s wall  {cpu:6.2f} s CPU  {members / wall:10,.0f} members/s")
    return wall


def read_raw(shards: list[Path]) -> int:
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.read(4 << 20):
                pass
    return 0


def read_tarfile(shards: list[Path]) -> int:
    members = 0
    for shard in shards:
        with tarfile.open(shard) as tar:
            for info in tar:
                file = tar.extractfile(info)
                members += file is not None and file.read() is not None
    return members


def speed(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder, pairs)
        size = sum(shard.stat().st_size for shard in shards)
        print(f"{pairs:,} pairs in {len(shards)} tars, {size / 1e6:.0f} MB, page cache warm")
        timed("raw bytes (cat)", lambda: read_raw(shards))
        timed("tarfile, contents read, nothing checked", lambda: read_tarfile(shards))
        timed("truepair index (captions, size, sha256)", lambda: index(shards, folder / "table").members)
        timed("truepair index, verify=True", lambda: index(shards, folder / "verified", verify=True).members)


def write_table(folder: Path, rows: int) -> None:
    """A table of invented rows, without images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with pq.ParquetWriter(folder / PAIRS, SCHEMA) as writer:
        for first in range(0, rows, STREAM_ROWS):
            row = np.arange(first, min(first + STREAM_ROWS, rows))
            captions = pa.array([[f"a photograph of object {r * 7919 % 99991} on a table number {r}"] for r in row])
            columns = {
                "row": row,
                "key": [f"{r:09d}" for r in row],
                "source": row // 10_000,
                "offset": row * 8192,
                "size": random.integers(3000, 60_000, len(row)),
                "path": [f"{r:09d}.jpg" for r in row],
                "caption": captions,
                "width": random.integers(200, 600, len(row)),
                "height": random.integers(200, 600, len(row)),
                "sha": [random.bytes(16).hex() for _ in row],
            }
            writer.write_table(pa.table(columns, SCHEMA))
    PairTable(folder, [Source(f"/shards/{i:05d}.tar", "tar") for i in range(rows // 10_000 + 1)]).save()


def measure_open(folder: Path) -> None:
    """In a process of its own: open the table, take 512 random rows, print seconds and peak memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    table = PairTable.open(folder)
    rows = np.random.default_rng(1).integers(0, len(table), 512)
    for name in COLUMNS[:3]:
        table.numbers(name)[rows]
    captions = table.captions()
    texts = [captions[int(row)] for row in rows]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(texts) == 512
    print(f"{seconds:6.3f} s, peak {peak / 1024:.0f} MB ({before / 1024:.0f} MB of it the imports)")


def measure_table(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        write_table(folder, rows)
        print(f"{rows:,} rows, pairs.parquet {(folder / PAIRS).stat().st_size / 1e6:.0f} MB; {', '.join(COLUMNS)}")
        for label in ("cold (columns are mapped for the first time)", "warm"):
            print(f"{label:46s}", end="", flush=True)
            subprocess.run([sys.executable, __file__, "open-one", "--table", str(folder)], check=True, env=os.environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "open", "open-one"])
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    match arguments.what:
        case "speed":
            speed(arguments.pairs)
        case "open":
            measure_table(arguments.rows)
        case "open-one":
            measure_open(arguments.table)


if __name__ == "__main__":
    main()
