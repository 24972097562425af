"""The pairwise losses beside open_clip's: bytes kept for backward, peak memory, time of forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/pairwise.py                      # CPU: 4,096 with the peers, 32,768 alone
    python benchmarks/pairwise.py --device cuda --dtype bfloat16 \
        --compare 8192 32768 --alone 65536 131072                        # a GPU; inf_cl is measured too if installed

Each row is a process of its own, so that peaks do not mix. `kept` counts the storages that autograd saves beside the
features. `peak` is the process's high-water mark less what it held with the features loaded. `share` is what the matrix
products of one forward and backward would take at this machine's limit (measured by one large product), as a part of
the time: four products for one softmax or sigmoid, two more for each second similarity.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.losses import Pooled, Softened, sigmoid_rows, softmax_pairs, weighted_mean

Step = Callable[[], Tensor]
OURS = ("softmax", "softmax, softened by two guides", "softmax, softened by a twin", "sigmoid")
PEERS = ("ClipLoss", "SigLipLoss", "SigLipLoss in 8 chunks", "inf_cl")
RIVAL = {"softmax": "ClipLoss", "sigmoid": "SigLipLoss"} | dict.fromkeys(OURS[1:3], "ClipLoss")
PRODUCTS = {"softmax": 4, "sigmoid": 4, OURS[1]: 8, OURS[2]: 8}  # B·B·D each; see the docstring


def loss_of(way: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Step:
    if way == "ClipLoss":
        clip = open_clip.loss.ClipLoss()
        return lambda: clip(image, text, scale)
    if way == "SigLipLoss":
        siglip = open_clip.loss.SigLipLoss()
        return lambda: siglip(image, text, scale, bias)
    if way == "SigLipLoss in 8 chunks":
        return lambda: chunked_siglip(image, text, scale, bias)
    if way == "inf_cl":
        from inf_cl import cal_flash_loss  # type: ignore[import-not-found]

        return lambda: sum(cal_flash_loss(*side, scale=scale).mean() for side in ((image, text), (text, image))) / 2
    if way == "sigmoid":
        return lambda: weighted_mean(sigmoid_rows(image, text, scale, bias))
    guides = (None, None)
    if way != "softmax":
        seen, read = (noisy(side.detach(), seed) for seed, side in enumerate((image, text)))
        two = way == OURS[1]
        guides = tuple(
            Softened(Pooled(one, other, 14.3), 0.3)
            for one, other in (((seen, seen), (read, read)) if two else ((seen, read), (read, seen)))
        )

    def step() -> Tensor:
        i2t, t2i = softmax_pairs(image, text, scale, *guides)
        return weighted_mean(i2t + t2i) / 2

    return step


def chunked_siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss with one eighth of the texts at a time, all kept for backward."""
    total = image.new_zeros(())
    for start, part in zip(range(0, len(text), len(text) // 8), text.chunk(8), strict=True):
        logits = scale * image @ part.T + bias
        total = total + F.softplus(logits).sum() - logits[start : start + len(part)].diagonal().sum()
    return total / len(image)


def noisy(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return F.normalize(x.float() + noise / x.shape[1] ** 0.5, dim=1).to(x.dtype)


def forward(step: Step, inputs: list[Tensor]) -> tuple[Tensor, int]:
    """The loss, and the bytes that its backward needs beside the features."""
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step()
    return loss, sum(found.values())


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is held now
    return peak(device)


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(mark.split()[1]) * 1024


def best(call: Callable[[], object], device: str, seconds: float) -> float:
    """Shortest of as many calls as begin in so many seconds."""
    times: list[float] = []
    while sum(times) < seconds:
        start = clock(device)
        call()
        times.append(clock(device) - start)
    return min(times)


def measure(way: str, batch: int, args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(args.threads)
    device, dtype = args.device, getattr(torch, args.dtype)
    generator = torch.Generator(device).manual_seed(0)
    image, text = (
        F.normalize(torch.randn(batch, args.dim, generator=generator, device=device), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    )
    numbers = [torch.tensor(value, device=device, requires_grad=True) for value in (14.3, -10.0)]
    inputs = [image, text, *numbers]
    small = [side[:256].detach().requires_grad_() for side in (image, text)]
    loss_of(way, *small, *numbers)().backward()  # loads the libraries, compiles
    step = loss_of(way, *inputs)
    before, start = reset_peak(device), clock(device)
    loss, held = forward(step, inputs)
    loss.backward()
    first = clock(device) - start
    height = peak(device) - before

    def both() -> None:
        for tensor in inputs:
            tensor.grad = None
        step().backward()

    wide = min(batch, 4_096)
    with torch.no_grad():
        product = best(lambda: image[:wide] @ text[:wide].T, device, args.seconds / 4)
    flops = 2 * wide * wide * args.dim / product
    seconds = min(first, best(both, device, args.seconds - first)) if first < args.seconds else first
    found = {"way": way, "batch": batch, "kept_mib": held / 2**20, "peak_mib": height / 2**20, "seconds": seconds}
    if way in PRODUCTS:
        found["share"] = PRODUCTS[way] * 2 * batch**2 * args.dim / flops / seconds
    return found | {"loss": loss.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=int, nargs="*", default=[4096], help="batches to measure beside the peers")
    parser.add_argument("--alone", type=int, nargs="*", default=[32768], help="batches too large for them")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="time spent on each measurement")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return
    peers = [way for way in PEERS if way != "inf_cl" or importlib.util.find_spec("inf_cl")]
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}, Python {platform.python_version()}"
    print(f"{platform.processor() or platform.machine()}, {gpu}; {versions}; D = {args.dim}, {args.dtype}")
    heads = "".join(f"{name:>10}" for name in ("kept MiB", "peak MiB", "seconds", "µs/row", "ratio", "share"))
    print(f"{'batch':>7} {'loss':32}{heads}")
    results = []
    plan = [(batch, (*peers, *OURS)) for batch in args.compare] + [(batch, OURS) for batch in args.alone]
    for batch, ways in plan:
        rivals: dict[str, float] = {}
        for way in ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way, str(batch)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{batch:7,} {way:32} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:90]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            rivals[way] = found["seconds"]
            if RIVAL.get(way) in rivals:
                found["ratio"] = found["seconds"] / rivals[RIVAL[way]]
            results.append(found)
            figures = [found["kept_mib"], found["peak_mib"], found["seconds"], found["seconds"] / batch * 1e6]
            shown = "".join(f"{value:10.{digits}f}" for value, digits in zip(figures, (1, 0, 3, 1), strict=True))
            shown += f"{found['ratio']:10.2f}" if "ratio" in found else " " * 10
            shown += f"{found['share']:10.0%}" if "share" in found else ""
            print(f"{batch:7,} {way:32}{shown}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": gpu, "versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
