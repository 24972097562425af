"""Methods on noisy emoji, evaluated on an artist never seen in training: the demo's model and schedule, several seeds.

    python benchmarks/methods.py --out work --jobs 2 [--image-model timm:... --text-model sentence-transformers:...]
    python benchmarks/methods.py --out work --kinds shuffle truncate --rows clip gate nlip [--completion-start 12]

Makes the corpus, corrupts it, embeds it where guidance models are given, trains every cell with `truepair train` on one
thread, and prints a table. A cell whose result is there is not run again. WORK/cells/NAME holds the run, NAME.json its
result. About five minutes a cell on one core; two at a time on two.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import truepair

RECIPE = Path(truepair.__file__).with_name("demo.toml")
GUIDED = ("--options.image-features", "seen_image", "--options.text-features", "read_text")
NLIP = {  # row: flags; the rows with completion also get --completion.start
    "nlip, harmonization": ("--options.captioning", "0"),
    "nlip, completion": ("--options.smoothing", "0"),
    "nlip": (),
}
FIGURES = {"top-1": "top1", "top-5": "top5", "R@1 t→i": "text_to_image_r1"}


@dataclass(frozen=True)
class Cell:
    """One run: a row of the table, at one noise rate, with one seed (of the noise, the weights and the order)."""

    row: str
    method: str
    flags: tuple[str, ...]
    kind: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.replace(' ', '-').replace(',', '')}-{noise(self.kind, self.rate)}-{self.seed}"


def noise(kind: str, rate: float) -> str:
    """A name for a kind of noise and its rate; shuffled captions are meant where no kind is named."""
    return f"{'' if kind == 'shuffle' or not rate else kind + '-'}{round(100 * rate)}"


def rows(rate: float, guided: bool, completion_start: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, method and flags of each row of the table."""
    truth = "label" if rate == 0 else "label@caption_from"
    counted = ("--options.image-truth", "label", "--options.caption-truth", truth)
    found = [(name, name, ()) for name in ("clip", "siglip", "gate", "softclip")] + [("fff", "fff", counted)]
    found += [("softclip, stored features", "softclip", GUIDED)] * guided
    completed = ("--completion.start", str(completion_start))
    return found + [(name, "nlip", flags + completed * (name != "nlip, harmonization")) for name, flags in NLIP.items()]


def truepair_(*words: str | Path, log: Path | None = None) -> str:
    """Standard output of a truepair command on one thread."""
    command = [sys.executable, "-m", "truepair", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (log or Path(os.devnull)).open("w") as errors:
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        ).stdout


def table_of(work: Path, kind: str, rate: float, seed: int, args: argparse.Namespace) -> Path:
    """The pair table of a noise and seed, with feature columns if there are models: images once, texts anew."""
    table = work / "emoji" / "train"
    if args.image_model:
        table = embedded(table, work / "seen", args.image_model)
    if rate:
        clean, table = table, work / f"noisy-{noise(kind, rate)}-{seed}"
        if not table.exists():
            truepair_("corrupt", clean, "--kind", kind, "--rate", str(rate), "--seed", str(seed), "--out", table)
    return embedded(table, work / f"{table.name}-read", args.text_model) if args.text_model else table


def embedded(table: Path, out: Path, model: str) -> Path:
    """`table` with the features of a model, NAME_image or NAME_text; NAME is what `out` ends in."""
    if not out.exists():
        name = out.name.split("-")[-1]
        truepair_("embed", table, "--model", model, "--name", name, "--out", out, "--workers", "0")
    return out


def run(cell: Cell, work: Path, table: Path) -> dict[str, object]:
    result = work / "cells" / f"{cell.name}.json"
    if not result.exists():
        out, emoji = work / "cells" / cell.name, work / "emoji"
        again = ["--resume"] if (out / "run.toml").exists() else []
        evaluated = ["--eval.zeroshot", emoji / "zeroshot", "--eval.retrieval", emoji / "test"]
        how = ["--config", RECIPE, "--method", cell.method, "--data", table, "--seed", str(cell.seed), "--out", out]
        printed = truepair_(
            "train", *how, *evaluated, "--workers", "0", "--json", *cell.flags, *again, log=out.with_suffix(".log")
        )
        result.write_text(printed.splitlines()[-1])
    found = json.loads(result.read_text())
    lines = [json.loads(line) for line in (work / "cells" / cell.name / "metrics.jsonl").read_text().splitlines()]
    detected = [line["auroc"] for line in lines if "auroc" in line]
    print(f"{cell.name}: top-1 {100 * found['figures']['top1']:.1f}", file=sys.stderr, flush=True)
    return {"cell": vars(cell), "auroc": detected[-1] if detected else None, "mined": mined(lines)} | found


def mined(lines: list[dict[str, float]]) -> dict[str, float]:
    """Sums of FFF's counts over the second half of a run, in which mining is on."""
    train = [line for line in lines if "new_true" in line]
    late = train[len(train) // 2 :]
    return {
        name: sum(line[name] for line in late)
        for name in ("new_positives", "new_true", "false_negatives", "same_text")
        if late
    }


def shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", default=["shuffle"], help="of noise; rate 0 is run once")
    parser.add_argument("--rows", nargs="+", default=[], help="of the table, by name; default: all")
    parser.add_argument("--completion-start", type=int, default=12, help="of nlip")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.4])
    parser.add_argument(
        "--image-model", default="", help="of truepair embed: guidance for SoftCLIP from stored features"
    )
    parser.add_argument("--text-model", default="", help="the same for texts")
    args = parser.parse_args()
    work: Path = args.out
    (work / "cells").mkdir(parents=True, exist_ok=True)
    if not (work / "emoji" / "zeroshot").exists():
        truepair_("data", "emoji", "--out", work / "emoji")
    guided = bool(args.image_model and args.text_model)
    noises = list(dict.fromkeys((kind if rate else args.kinds[0], rate) for kind in args.kinds for rate in args.rates))
    grid = list(itertools.product(args.seeds, noises))
    tables = {(*what, seed): table_of(work, *what, seed, args) for seed, what in grid}
    cells = [
        Cell(*row, *what, seed)
        for seed, what in grid
        for row in rows(what[1], guided, args.completion_start)
        if not args.rows or row[0] in args.rows
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda cell: run(cell, work, tables[cell.kind, cell.rate, cell.seed]), cells))
    (work / "results.json").write_text(json.dumps(results, indent=1))
    print(f"| method | noise | {' | '.join(FIGURES)} | AUROC | samples/s |\n|---|--:|{'--:|' * (len(FIGURES) + 2)}")
    for kind, rate in noises:
        for name in dict.fromkeys(cell.row for cell in cells):
            mine = [
                r
                for r, cell in zip(results, cells, strict=True)
                if (cell.row, cell.kind, cell.rate) == (name, kind, rate)
            ]
            figures = [shown([100 * r["figures"][key] for r in mine]) for key in FIGURES.values()]
            detected = [r["auroc"] for r in mine if r["auroc"] is not None]
            figures.append(f"{statistics.mean(detected):.3f}" if detected else "")
            figures.append(f"{statistics.mean(r['samples_per_s'] for r in mine):.0f}")
            print(f"| {name} | {rate:.0%}{' ' + kind if rate else ''} | {' | '.join(figures)} |")
    for r, cell in zip(results, cells, strict=True):
        if m := r["mined"]:
            precision = m["new_true"] / max(m["new_positives"], 1e-9)
            recall = m["new_true"] / max(m["false_negatives"], 1e-9)
            print(f"{cell.name}: of the pairs found by similarity {precision:.1%} true, {recall:.1%} of all there were")


if __name__ == "__main__":
    main()
