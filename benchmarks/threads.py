"""What other work on the cores costs a training step of several threads: libgomp's threads spin while they wait.

Steps a second of truepair-tiny's towers with as many threads as cores, alone and beside that many busy processes, in a
process each; first as torch comes, then with the GOMP_SPINCOUNT that the command `truepair` sets where the user has
said nothing, then with one thread. Prints a table.

    python benchmarks/threads.py
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy, normalize

from truepair.cli.verbs import SPINS
from truepair.models import create

BATCH = 128
BUSY = [sys.executable, "-c", "while True: pass"]


def steps_a_second(seconds: float) -> float:
    """Of forward and backward in this process."""
    torch.manual_seed(0)
    model = create("truepair-tiny").train()
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    tokens = model.tokenize([f"a photo of thing {number}" for number in range(BATCH)])
    began, done = 0.0, -3  # the first three steps are not counted
    while done < 1 or time.perf_counter() - began < seconds:
        if done == 0:
            began = time.perf_counter()
        x, t = (normalize(found.float(), dim=1) for found in (model.encode_image(images), model.encode_text(tokens)))
        cross_entropy(model.scale * x @ t.T, torch.arange(BATCH)).backward()
        model.zero_grad()
        done += 1
    return done / (time.perf_counter() - began)


def measured(threads: int, extra: dict[str, str], busy: int, seconds: float) -> float:
    """The same in a process with `threads` and further variables, beside `busy` processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    others = [subprocess.Popen(BUSY) for _ in range(busy)]
    try:
        command: Sequence[str] = [sys.executable, __file__, "--one", "--seconds", str(seconds)]
        environment |= {"OMP_NUM_THREADS": str(threads)} | extra
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    finally:
        for other in others:
            other.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(steps_a_second(arguments.seconds))
        return
    cores = len(os.sched_getaffinity(0))
    rows = {
        f"{cores} threads, as torch comes": (cores, {}),
        f"{cores} threads, GOMP_SPINCOUNT={SPINS}": (cores, {"GOMP_SPINCOUNT": SPINS}),
        "1 thread": (1, {}),
    }
    print(f"torch {torch.__version__}, {cores} cores, batch {BATCH}\n")
    print(f"| | steps/s alone | beside {cores} busy processes |\n|---|--:|--:|")
    for name, (threads, extra) in rows.items():
        alone, beside = (measured(threads, extra, busy, arguments.seconds) for busy in (0, cores))
        print(f"| {name} | {alone:.1f} | {beside:.1f} |", flush=True)


if __name__ == "__main__":
    main()
