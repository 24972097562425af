"""Seconds of a training step by each method against clip's, alternating in one process: same towers, same batch.

    OMP_NUM_THREADS=1 python benchmarks/steps.py --queue 4096 --precision fp32 bf16    # truepair-fusion-tiny, 256 pairs
    python benchmarks/steps.py --device cuda --model truepair-fusion-base --batch-size 64 --precision bf16

A step is forward, backward, AdamW, and the twin where there is one, on uint8 pictures and captions made up here:
nothing is loaded. Methods are past their warm-ups (p_noise known, mining and the split on) and queues are full. In each
round every method takes one step; a ratio is the median over rounds of its seconds over clip's of the same round. On a
CPU (one thread) the seconds are the process's own, which other work there hardly touches. On a GPU they are the
clock's, and the table also has the memory of a step at its peak, above the weights, optimisers and queues that are held
anyway.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixture import hardware

from truepair.config import AugmentConfig, OptimConfig
from truepair.methods import METHODS, method_class
from truepair.methods.base import Inputs, Pairs
from truepair.models import create
from truepair.models.queue import Queue
from truepair.pairs.corpora.tables import make_tables
from truepair.pairs.table import PairTable
from truepair.pairs.text import caption_ids
from truepair.train.augment import augment
from truepair.train.devices import autocast, device_of
from truepair.train.optim import adamw
from truepair.train.step import Trainee, forward_backward

EPOCH, EPOCHS = 10.5, 20  # of the made-up run: past every warm-up, half of the split's ratio
CAPTIONS = 2_000  # in the table that methods are bound to: where NLIP finds its concepts


@dataclass(frozen=True)
class Row:
    """A line of the table: a method with options of its dataclass."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("clip", "clip"),
    Row("siglip", "siglip"),
    Row("gate", "gate"),
    Row("softclip", "softclip"),
    Row("softclip, pooled twin", "softclip", {"twin": "pooled"}),
    Row("fff", "fff"),
    Row("nlip, harmonization", "nlip", {"captioning": 0.0}),
    Row("nlip", "nlip"),
    Row("never-itc", "never-itc"),
    Row("never-itc, no locals, no intra", "never-itc", {"local": False, "intra": False}),
    Row("never, no split", "never", {"ratio": 0.0}),
    Row("never, no MLM", "never", {"mlm": 0.0}),
    Row("never, MLM among the words used", "never", {"vocabulary": "used"}),
    Row("never", "never"),
)


class Stepping:
    """One method with towers of its own, ready to take steps on the batch that all share."""

    def __init__(self, row: Row, model: str, size: int, table: PairTable, device: torch.device, lr: float) -> None:
        torch.manual_seed(0)
        kind = method_class(row.method)
        self.method = kind(kind.Options(**row.options))
        needs = self.method.needs
        bias = -1.0 if needs.init_bias is not None else None
        towers = create(model, init_scale=needs.init_scale, init_bias=bias)
        self.method.bind(towers, table, table.captions())
        self.trainee = Trainee(towers, self.method).to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = adamw(self.trainee, OptimConfig(), lr)
        self.device = device
        for module in self.method.modules():
            if isinstance(module, Queue):
                self._fill(module, int(towers.config["embed_dim"]))
        self.inputs, self.pairs = batch_of(table, towers, size, needs.views, device)

    def _fill(self, queue: Queue, dim: int) -> None:
        held = self.method.options.queue
        some = torch.nn.functional.normalize(torch.randn(2, held, dim, device=self.device), dim=-1)
        ids = torch.arange(held, device=self.device)
        queue.push(some[0], some[1], ids, ids)

    def step(self, precision: str) -> tuple[float, float]:
        """Seconds of one step, and MiB at its peak above what was held before (0 on a CPU)."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if cuda else 0
        clock = time.perf_counter if cuda else time.process_time
        start = clock()
        forward_backward(self.trainee, self.inputs, self.pairs, 1, autocast(precision, self.device))
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trainee.model.clamp_scale(*self.method.needs.scale_bounds)
        self.method.after_step(self.trainee.model)
        if cuda:
            torch.cuda.synchronize()
        seconds = clock() - start
        return seconds, (torch.cuda.max_memory_allocated() - held) / 2**20 if cuda else 0.0


def batch_of(table: PairTable, model: Any, size: int, views: int, device: torch.device) -> tuple[Inputs, Pairs]:
    """`size` pairs of random pixels and the table's captions, the same for every method."""
    drawn, side = np.random.default_rng(0), model.image_size
    pixels = torch.from_numpy(drawn.integers(0, 256, (1, size, side, side, 3), np.uint8)).repeat(views, 1, 1, 1, 1)
    images = augment(pixels.to(device).permute(0, 1, 4, 2, 3), AugmentConfig(), seed=0, step=0, first=0, total=size)
    captions = table.captions()
    texts = [f"{captions[row % len(captions)][0]} {row}" for row in range(size)]  # no two alike
    rows = torch.arange(size, device=device)
    seeds = torch.from_numpy(drawn.integers(-(2**63), 2**63, size, np.int64)).to(device)
    p_noise = torch.from_numpy(drawn.random(size, np.float32)).to(device)
    pairs = Pairs(*(rows, p_noise, {}, EPOCH, EPOCHS), captions=caption_ids(texts).to(device), images=rows, seeds=seeds)
    return Inputs(images, model.tokenize(texts).to(device), {}, seeds), pairs


def measured(made: dict[str, Stepping], rounds: int, precision: str, first: str) -> list[dict[str, Any]]:
    """A line of figures for each method; `first` is what the others are compared with."""
    for stepping in made.values():
        stepping.step(precision)  # allocations, kernels
    taken = [{name: stepping.step(precision) for name, stepping in made.items()} for _ in range(rounds)]
    lines = []
    for name in made:
        ratios = sorted(one[name][0] / one[first][0] for one in taken)
        lines.append(
            {
                "row": name,
                "precision": precision,
                "seconds": statistics.median(one[name][0] for one in taken),
                "ratio": statistics.median(ratios),
                "least": ratios[0],
                "most": ratios[-1],
                "peak_mib": max(one[name][1] for one in taken),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [row for row in ROWS if row.method in METHODS]
    parser.add_argument("--model", default="truepair-fusion-tiny", help="towers of every method")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rows", nargs="+", default=[row.name for row in rows], choices=[row.name for row in rows])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--queue", type=int, default=-1, help="of NEVER; default: its own, 65,536")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = device_of(args.device)
    if args.queue >= 0:
        asked = {"queue": args.queue}
        rows = [replace(row, options=row.options | asked) if row.method.startswith("never") else row for row in rows]
    chosen = [row for row in rows if row.name in {"clip", *args.rows}]
    with tempfile.TemporaryDirectory() as folder:
        make_tables("scenes", Path(folder) / "scenes", n=CAPTIONS, size=16)
        table = PairTable.open(Path(folder) / "scenes" / "train")
        made = {row.name: Stepping(row, args.model, args.batch_size, table, device, 1e-4) for row in chosen}
    lines = [line for precision in args.precision for line in measured(made, args.rounds, precision, "clip")]

    memory = device.type == "cuda"
    print(f"| method | precision | ms a step | against clip | least … most |{' peak MiB |' if memory else ''}")
    print(f"|---|---|--:|--:|--:|{'--:|' if memory else ''}")
    for line in lines:
        spread = f"{line['least']:.2f} … {line['most']:.2f}"
        peak = f" {line['peak_mib']:,.0f} |" if memory else ""
        taken = f"{1000 * line['seconds']:,.1f} | {line['ratio']:.2f} | {spread}"
        print(f"| {line['row']} | {line['precision']} | {taken} |{peak}")
    where = torch.cuda.get_device_name() if memory else f"{hardware()}, one thread"
    said = {name: getattr(args, name) for name in ("model", "batch_size", "rounds", "queue")}
    versions = {name: version(name) for name in ("torch", "open_clip_torch")}
    print(json.dumps({"lines": lines, "rows": [asdict(row) for row in chosen], "hardware": where} | said | versions))


if __name__ == "__main__":
    main()
