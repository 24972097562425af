"""Times the exact search for the nearest concepts of many images, and its memory, for several sizes of chunk.

Random unit features stand for images (n, D) float16, in a file that is mapped as a column is, and for concepts. Each
line runs in a process of its own, so that its peak memory is its own: what the kernel calls VmHWM, less what the
process had before the search, and less the file's pages, which it can drop at any moment. Prints markdown.

    OMP_NUM_THREADS=1 python benchmarks/concepts.py                    # which chunk: 65,536 images
    OMP_NUM_THREADS=1 python benchmarks/concepts.py --n 1000000 --chunks 4096
"""

import argparse
import functools
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from truepair.annotate.concepts import by_faiss
from truepair.annotate.parts import CHUNK as ROWS
from truepair.models.concepts import ConceptBank


def write_features(file: Path, n: int, dim: int) -> None:
    """(n, D) float16 random unit rows."""
    random = np.random.default_rng(0)
    values = np.lib.format.open_memmap(file, "w+", np.float16, (n, dim))
    for at in range(0, n, ROWS):
        piece = random.standard_normal((min(ROWS, n - at), dim), np.float32)
        values[at : at + ROWS] = piece / np.linalg.norm(piece, axis=1, keepdims=True)


def resident(kind: str) -> float:
    """MB of this process: "VmHWM" at most so far, "RssAnon" now, "RssFile" of mapped files now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def search(file: Path, concepts: int, k: int, chunk: int, device: str, done: multiprocessing.Queue) -> None:
    """Name all images; chunk 0: by faiss. Puts seconds and MB."""
    values = np.load(file, mmap_mode="r")
    generator = torch.Generator().manual_seed(1)
    bank = ConceptBank([str(i) for i in range(concepts)], values.shape[1])
    bank.features.copy_(torch.nn.functional.normalize(torch.randn(bank.features.shape, generator=generator), dim=1))
    bank.to(device)
    nearest = functools.partial(bank.nearest, k=k, chunk=chunk) if chunk else functools.partial(by_faiss(bank), k=k)
    nearest(torch.from_numpy(np.array(values[:ROWS])).to(device))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, started = resident("VmRSS"), time.perf_counter()
    files = resident("RssFile")
    total = torch.zeros((), dtype=torch.float64)
    for at in range(0, len(values), ROWS):
        scores, _ = nearest(torch.from_numpy(np.array(values[at : at + ROWS])).to(device))
        total += scores.double().sum().cpu()
    seconds = time.perf_counter() - started
    mapped = resident("RssFile") - files
    done.put((seconds, resident("VmHWM") - before - mapped, resident("VmHWM") - mapped, float(total) / len(values) / k))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=65_536, help="images")
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--chunks", type=int, nargs="+", default=[512, 1024, 2048, 4096, 10_000], help="0: faiss")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    print(f"{options.n:,} images x {options.concepts:,} concepts, D = {options.dim}, k = {options.k}, {options.device}")
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are")
    print(f"{platform.machine()}, torch {torch.__version__}, threads: {threads}")
    print("\n| concepts at once | seconds | images/s | memory of the search, MB | of the process, MB | mean score |")
    print("|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        write_features(file, options.n, options.dim)
        for chunk in options.chunks:
            done = spawn.Queue()
            given = (file, options.concepts, options.k, chunk, options.device, done)
            process = spawn.Process(target=search, args=given)
            process.start()
            seconds, added, peak, mean = done.get()
            process.join()
            name = f"{chunk:,}" if chunk else "faiss, all"
            print(f"| {name} | {seconds:.1f} | {options.n / seconds:,.0f} | {added:,.0f} | {peak:,.0f} | {mean:.5f} |")


if __name__ == "__main__":
    main()
