"""CPU seconds and peak memory of an audit after its pass over the images: each issue's search, the files, the page.

Rows are invented, scores and looks drawn at random; only the 64 pictures that stand for all of them are real. `apart`:
one row in twenty is a copy, all others look different. `crowded`: half of the rows look like one of a hundred
templates, some bits apart, as logos, placeholders and product shots do. Pairs that describe each other need features
and are looked for among --related rows. Prints a table, then one line of JSON.

    OMP_NUM_THREADS=1 python benchmarks/audit.py
    OMP_NUM_THREADS=1 python benchmarks/audit.py --looks crowded
"""

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mixture import hardware
from numpy.typing import NDArray
from PIL import Image

from truepair.evaluate.audit import audit
from truepair.evaluate.evidence import Seen, evidence_of
from truepair.evaluate.noise import PairScores
from truepair.evaluate.remembered import remember, scoring
from truepair.models.dual import create
from truepair.noise import fit_losses
from truepair.noise.issues import ISSUES
from truepair.noise.issues.base import Second
from truepair.noise.issues.looks import Looks
from truepair.noise.scores import NEGATIVES
from truepair.pairs.columns import STREAM_ROWS
from truepair.pairs.table import PAIRS, SCHEMA, PairTable, Source
from truepair.report.audit.page import write_audit_page

TEMPLATES = 100
DIM = 512  # of the features


@dataclass(frozen=True)
class Unit:
    """Features of rows 0 … n-1 as an issue wants them."""

    image: torch.Tensor
    text: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.image.device

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.image))

    def of(self, places: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image[torch.from_numpy(places)], self.text[torch.from_numpy(places)]


def write_table(folder: Path, rows: int) -> PairTable:
    """A table of invented rows over 64 JPEGs in one file; every row says that its image is another."""
    folder.mkdir()
    random = np.random.default_rng(0)
    vocabulary = np.array(["".join(letters) for letters in random.choice(list("aeioubdklmnrst"), (20_000, 5))])
    at, size, packed = [], [], io.BytesIO()
    for _ in range(64):
        at.append(packed.tell())
        pixels = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(packed, "JPEG", quality=88)
        size.append(packed.tell() - at[-1])
    (folder / "images.bin").write_bytes(packed.getvalue())
    with pq.ParquetWriter(folder / PAIRS, SCHEMA) as writer:
        for first in range(0, rows, STREAM_ROWS):
            row = np.arange(first, min(first + STREAM_ROWS, rows))
            columns = {
                "row": row,
                "key": [f"{r:09d}" for r in row],
                "source": np.zeros(len(row), np.int32),
                "offset": np.array(at)[row % 64],
                "size": np.array(size)[row % 64],
                "path": [f"{r:09d}.jpg" for r in row],
                "caption": [
                    [" ".join(words)] for words in vocabulary[random.zipf(1.2, (len(row), 8)) % len(vocabulary)]
                ],
                "width": np.full(len(row), 256),
                "height": np.full(len(row), 256),
                "sha": [random.bytes(16).hex() for _ in row],
            }
            writer.write_table(pa.table(columns, SCHEMA))
    PairTable(folder, [Source("images.bin", "tar")]).save()
    return PairTable.open(folder)


def looks_of(rows: int, kind: str) -> Looks:
    """`apart` or `crowded`, as above."""
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, rows, np.uint64)
    colours = random.integers(0, 256, (rows, 12), np.uint8)
    copies, flips = (np.arange(1, rows, 20), 2) if kind == "apart" else (np.arange(1, rows, 2), 6)
    source = copies - 1 if kind == "apart" else random.integers(0, TEMPLATES, len(copies)) * 2
    hashes[copies] = hashes[source]
    for _ in range(flips):
        hashes[copies] ^= np.uint64(1) << random.integers(0, 64, len(copies), np.uint64)
    colours[copies] = np.clip(colours[source] + random.integers(-3, 4, (len(copies), 12)), 0, 255)
    return Looks(np.ones(rows, bool), hashes, colours, random.gamma(4, 12, rows).astype(np.float32))


def scores_of(rows: int) -> PairScores:
    """Four in ten mismatched."""
    random = np.random.default_rng(2)
    loss = np.where(random.random(rows) < 0.4, random.normal(0.16, 0.03, rows), random.normal(0.05, 0.02, rows))
    cosine = (0.3 - loss + random.normal(0, 0.02, rows)).astype(np.float32)
    mixture = fit_losses(loss.astype(np.float32))
    p_noise = mixture.posterior(loss.astype(np.float32)).astype(np.float32)
    return PairScores(cosine, -loss.astype(np.float32), p_noise, mixture, [])


def features_of(rows: int) -> Unit:
    """Clusters of a dozen pairs that mean nearly the same."""
    torch.manual_seed(3)
    centre = torch.randn(rows // 12 + 1, DIM)[torch.randint(rows // 12 + 1, (rows,))]
    made = [torch.nn.functional.normalize(centre + 0.3 * torch.randn(rows, DIM), dim=1) for _ in range(2)]
    return Unit(made[0], made[1])


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()  # of the one thread: other work on the machine hardly touches it
    made = work()
    return time.process_time() - began, made


def measured(rows: int, related: int, kind: str, folder: Path) -> list[dict[str, Any]]:
    """What took how long, and the peak of this process up to then."""
    table, model, looks = write_table(folder / "table", rows), create("truepair-tiny"), looks_of(rows, kind)
    seen = Seen(scores_of(rows), looks)
    second = Second("test", np.zeros(rows, bool), looks_of(max(rows // 100, 1), kind))
    evidence = evidence_of(table, seen, 100.0, seconds=(second,))
    part = replace(evidence, features=features_of(min(related, rows)))
    told = []

    def tell(what: str, took: float, n: int, more: str = "") -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        told.append({"what": what, "rows": n, "seconds": took, "peak_gib": peak, "more": more})
        print(f"| {what} | {n:,} | {took:.1f} | {peak:.1f} | {more} |", flush=True)

    print("| | rows | CPU s | peak GiB so far | |\n|---|--:|--:|--:|---|")
    tell("before", 0.0, rows)
    for issue in ISSUES:
        has = part if issue.name == "false_negative_group" else evidence
        if issue.lacks(has):
            continue
        took, found = seconds(partial(issue.find, has, issue.threshold))
        n = rows if has is evidence else len(part.features.rows) if part.features else 0
        tell(issue.name, took, n, f"{int((found.score >= issue.threshold).sum()):,} flagged")
    out = folder / "audit"
    remember(out, seen, scoring(model, table, 100.0, NEGATIVES, 0))
    took, result = seconds(lambda: audit(model, table, out, scale=100.0))
    size = sum(file.stat().st_size for file in result.files)
    tell("truepair audit again, without its page", took, rows, f"{size / 2**20:.0f} MiB")
    took, page = seconds(lambda: write_audit_page(out, table))
    tell("audit.html", took, rows, f"{page.stat().st_size / 2**20:.1f} MiB")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--related", type=int, default=100_000, help="rows with features, for pairs that describe each other"
    )
    parser.add_argument("--looks", choices=["apart", "crowded"], default="apart")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        told = measured(arguments.rows, arguments.related, arguments.looks, Path(name))
    versions = {package: version(package) for package in ("truepair", "numpy", "pyarrow", "torch")}
    print(json.dumps({"looks": arguments.looks, "hardware": hardware(), "versions": versions, "measured": told}))


if __name__ == "__main__":
    main()
