"""Time and peak memory of recall@k by tiles, beside the whole score matrix, each in a process of its own.

    python benchmarks/retrieval.py --n 100000 --dim 128

Memory is the peak of the process less what it held with the features loaded. The naive way is run at the sizes of
--naive only: it holds an n x n float32 matrix (100,000: 40 GB; 1,000,000: 4 TB).
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.evaluate.ranks import one_positive_each
from truepair.evaluate.retrieval import recall_at_k

KS = (1, 5, 10)


def features(n: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    image = normalize(torch.randn(n, dim, generator=generator, device=device), dim=1)
    noise = torch.randn(n, dim, generator=generator, device=device)
    return image, normalize(image + 2.5 / dim**0.5 * noise, dim=1)


def whole_matrix(queries: Tensor, keys: Tensor) -> dict[int, float]:
    top = (queries @ keys.T).topk(max(KS), dim=1).indices == torch.arange(len(queries), device=keys.device)[:, None]
    return {k: top[:, :k].any(dim=1).float().mean().item() for k in KS}


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is held now


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(mark.split()[1]) * 1024


def measure(way: str, n: int, dim: int, device: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    queries, keys = features(n, dim, device)
    whole_matrix(queries[:64], keys[:64])  # loads the libraries
    reset_peak(device)
    before, start, cpu = peak(device), time.perf_counter(), time.process_time()
    if way == "tiles":
        recall = recall_at_k(queries, keys, one_positive_each(torch.arange(n)), KS)
    else:
        recall = whole_matrix(queries, keys)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    held = (peak(device) - before) / 1e6
    return {"seconds": seconds, "cpu_s": cpu, "peak_mb": held} | {f"r@{k}": recall[k] for k in KS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[20_000, 100_000], help="queries, and as many keys")
    parser.add_argument("--naive", type=int, nargs="*", default=[20_000], help="sizes for the whole matrix")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=["tiles", "matrix"], help=argparse.SUPPRESS)  # a measuring child
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.n[0], given.dim, given.device, given.threads)))
        return
    results = []
    print(f"{'way':8}{'n':>10}{'dim':>6}{'seconds':>10}{'CPU s':>8}{'peak MB':>10}{'R@1':>8}{'R@10':>8}")
    for way, n in [("tiles", n) for n in given.n] + [("matrix", n) for n in given.naive]:
        flags = f"--one {way} --n {n} --dim {given.dim} --device {given.device} --threads {given.threads}"
        child = subprocess.run([sys.executable, __file__, *flags.split()], check=True, capture_output=True, text=True)
        row = json.loads(child.stdout)
        results.append({"way": way, "n": n, "dim": given.dim, **row})
        print(
            f"{way:8}{n:>10,}{given.dim:>6}{row['seconds']:>10.1f}{row['cpu_s']:>8.1f}{row['peak_mb']:>10.0f}"
            f"{row['r@1']:>8.4f}{row['r@10']:>8.4f}"
        )
    device = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    print(json.dumps({"torch": torch.__version__, "device": device, "threads": given.threads, "results": results}))


if __name__ == "__main__":
    main()
