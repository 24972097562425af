"""Attention of a training step on a CPU: torch's flash kernel against plain products, by length and precision.

Forward and backward of scaled_dot_product_attention on one thread, the two alternating in one process; milliseconds of
the process's own time, the median over rounds. Prints a table. What trains on a CPU in bf16 takes plain products.

    python benchmarks/attention.py
"""

import argparse
import json
import statistics
import time
from importlib.metadata import version

import torch
from mixture import hardware
from torch.nn.functional import scaled_dot_product_attention

SHAPES = ((128, 2, 12, 64), (64, 8, 20, 64), (64, 8, 50, 64), (32, 8, 77, 64), (16, 8, 197, 64))  # (B, heads, L, width)


def milliseconds(qkv: torch.Tensor, flash: bool) -> float:
    """Of one forward and backward."""
    torch.backends.cuda.enable_flash_sdp(flash)  # the switch of all devices
    began = time.process_time()
    scaled_dot_product_attention(*qkv).sum().backward()
    taken = time.process_time() - began
    qkv.grad = None
    return 1000 * taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| precision | batch × heads × length × width | flash ms | plain ms | flash / plain |")
    print("|---|---|--:|--:|--:|")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            qkv = torch.randn(3, *shape).to(dtype).requires_grad_()
            rounds = [[milliseconds(qkv, flash) for flash in (True, False)] for _ in range(args.rounds + 1)][1:]
            flash, plain = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(a / b for a, b in rounds)
            name = str(dtype).removeprefix("torch.")
            print(f"| {name} | {' × '.join(map(str, shape))} | {flash:.1f} | {plain:.1f} | {ratio:.2f} |", flush=True)
    print(json.dumps({"hardware": f"{hardware()}, one thread", "torch": version("torch"), "rounds": args.rounds}))


if __name__ == "__main__":
    main()
