"""Methods on noisy emoji, evaluated on an artist never seen in training: the demo's model and schedule, several seeds.

    python benchmarks/methods.py --out work --jobs 2 [--image-model timm:... --text-model sentence-transformers:...]
    python benchmarks/methods.py --out work --kinds shuffle truncate --rows clip gate nlip [--completion-start 12]
    python benchmarks/methods.py --out work --rates 0 0.2 0.4 0.6 --model truepair-fusion-tiny \
        --rows clip gate never-itc "never, no split" never

Makes the corpus, corrupts it, embeds it where guidance models are given, trains every cell with `truepair train` on one
thread, and prints a table. A cell whose result is there is not run again. WORK/cells/NAME holds the run, NAME.json its
result. About five minutes a cell on one core; two at a time on two. NEVER's rows run when they are named: their towers
are others (truepair-fusion-tiny), so compare them with rows that have the same by --model.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import truepair

RECIPE = Path(truepair.__file__).with_name("demo.toml")
GUIDED = ("--options.image-features", "seen_image", "--options.text-features", "read_text")
NLIP = {  # row: flags; the rows with completion also get --completion.start
    "nlip, harmonization": ("--options.captioning", "0"),
    "nlip, completion": ("--options.smoothing", "0"),
    "nlip": (),
}
FUSION = "truepair-fusion-tiny"  # towers of the rows with a fusion encoder, where --model names none
BATCH = "128"  # where the towers are named: twice the steps of the recipe, which a fusion encoder needs
TUNED = ("--options.queue", "2048", "--options.momentum-ramp")  # NEVER at this scale: 1,500 steps, 10,000 pairs
FUSED = (*TUNED, "--options.vocabulary", "used")
MLM = 0.1  # its weight beside the others; with 1 the fusion encoder does not learn to match in so few steps
RERANKED = 16  # of each query the dual encoder's best, in ITM's order
FIGURES = {"top-1": "top1", "top-5": "top5", "R@1 t→i": "text_to_image_r1"}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method and its flags. model: its towers, empty for the recipe's."""

    name: str
    method: str
    flags: tuple[str, ...] = ()
    model: str = ""
    reranked: bool = False  # its fusion encoder is asked too


@dataclass(frozen=True)
class Cell:
    """One run: a row of the table, at one noise rate, with one seed (of the noise, the weights and the order)."""

    row: Row
    kind: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        row = self.row.name.replace(" ", "-").replace(",", "")
        return f"{row}-{noise(self.kind, self.rate)}-{self.seed}{self.row.model and '-'}{self.row.model}"


NEVER = (
    Row("never-itc", "never-itc", TUNED),
    Row("never, no split", "never", (*FUSED, "--options.mlm", str(MLM), "--options.ratio", "0"), FUSION, reranked=True),
    Row("never", "never", (*FUSED, "--options.mlm", str(MLM)), FUSION, reranked=True),
)


def noise(kind: str, rate: float) -> str:
    """A name for a kind of noise and its rate; shuffled captions are meant where no kind is named."""
    return f"{'' if kind == 'shuffle' or not rate else kind + '-'}{round(100 * rate)}"


def rows(rate: float, guided: bool, completion_start: int, model: str = "") -> list[Row]:
    """All lines of the table. model: the towers of every row, empty for each method's usual ones."""
    truth = "label" if rate == 0 else "label@caption_from"
    counted = ("--options.image-truth", "label", "--options.caption-truth", truth)
    found = [Row(name, name) for name in ("clip", "siglip", "gate", "softclip")] + [Row("fff", "fff", counted)]
    found += [Row("softclip, stored features", "softclip", GUIDED)] * guided
    completed = ("--completion.start", str(completion_start))
    found += [Row(name, "nlip", flags + completed * (name != "nlip, harmonization")) for name, flags in NLIP.items()]
    return [replace(row, model=model or row.model) for row in [*found, *NEVER]]


def truepair_(*words: str | Path, log: Path | None = None) -> str:
    """Standard output of a truepair command on one thread."""
    command = [sys.executable, "-m", "truepair", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (log or Path(os.devnull)).open("w") as errors:
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        ).stdout


def once(result: Path, *words: str | Path) -> dict[str, Any]:
    """The JSON object that a truepair command prints, kept in the file `result`: what is done is not done again.

    What it says meanwhile goes to the file of the same name with .log in place of .json.
    """
    if not result.exists():
        printed = truepair_(*words, "--json", "--workers", "0", log=result.parent / f"{result.name[:-5]}.log")
        partial = result.parent / f".{result.name}.partial"
        partial.write_text(printed.splitlines()[-1])
        partial.replace(result)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def trained(name: str, work: Path, table: Path, *flags: str | Path) -> dict[str, Any]:
    """The result of training WORK/cells/NAME by the demo's recipe, on the unseen artist; killed, it goes on."""
    out, emoji = work / "cells" / name, work / "emoji"
    again = ["--resume"] if (out / "run.toml").exists() else []
    evaluated: list[str | Path] = ["--eval.zeroshot", emoji / "zeroshot", "--eval.retrieval", emoji / "test"]
    how: list[str | Path] = ["--config", RECIPE, "--data", table, "--out", out]
    return once(out.parent / f"{name}.json", "train", *how, *evaluated, *flags, *again)


def prepared(work: Path) -> Path:
    """WORK with the emoji corpus in it."""
    (work / "cells").mkdir(parents=True, exist_ok=True)
    if not (work / "emoji" / "zeroshot").exists():
        truepair_("data", "emoji", "--out", work / "emoji")
    return work


def table_of(work: Path, kind: str, rate: float, seed: int, image_model: str = "", text_model: str = "") -> Path:
    """The pair table of a noise and seed, with feature columns if there are models: images once, texts anew."""
    table = work / "emoji" / "train"
    if image_model:
        table = embedded(table, work / "seen", image_model)
    if rate:
        clean, table = table, work / f"noisy-{noise(kind, rate)}-{seed}"
        if not table.exists():
            truepair_("corrupt", clean, "--kind", kind, "--rate", str(rate), "--seed", str(seed), "--out", table)
    return embedded(table, work / f"{table.name}-read", text_model) if text_model else table


def embedded(table: Path, out: Path, model: str) -> Path:
    """`table` with the features of a model, NAME_image or NAME_text; NAME is what `out` ends in."""
    if not out.exists():
        name = out.name.split("-")[-1]
        truepair_("embed", table, "--model", model, "--name", name, "--out", out, "--workers", "0")
    return out


def flags_of(row: Row) -> list[str]:
    """Flags of `truepair train`; towers that are named come with batches half as large, alike in every row."""
    return ["--method", row.method, *row.flags, *(["--model", row.model, "--batch-size", BATCH] if row.model else [])]


def run(cell: Cell, work: Path, table: Path) -> dict[str, Any]:
    """Train a cell, rerank with it where it can, and gather what it says."""
    found = trained(cell.name, work, table, "--seed", str(cell.seed), *flags_of(cell.row))
    out, figures = work / "cells" / cell.name, found["figures"]
    if cell.row.reranked:
        how: list[str | Path] = ["--retrieval", work / "emoji" / "test", "--rerank", str(RERANKED)]
        figures["reranked_r1"] = reranked_r1(once(out.parent / f"{cell.name}.reranked.json", "eval", out, *how))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    print(f"{cell.name}: top-1 {100 * figures['top1']:.1f}", file=sys.stderr, flush=True)
    detected = {name: last(lines, name) for name in ("auroc", "confidence_auroc")}
    return {"cell": asdict(cell), "mined": mined(lines)} | detected | found


def last(lines: list[dict[str, Any]], name: str) -> float | None:
    """The last number of a name in metrics.jsonl, None where there is none."""
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def reranked_r1(printed: dict[str, Any]) -> float:
    """R@1 text→image in ITM's order, from what `truepair eval --rerank` prints."""
    found = next(one for one in printed["results"] if one["task"] == "zeroshot_retrieval_reranked")
    return float(found["metrics"]["image_retrieval_recall@1"])


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
    """Mean and standard deviation in percent, of values in [0, 1]."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" if values else ""


def table_lines(results: list[dict[str, Any]]) -> list[str]:
    """A Markdown table, a line for each noise and row; columns of the fusion encoder only where a row has one."""
    figures = FIGURES | {f"reranked {RERANKED}: R@1 t→i": "reranked_r1"}
    figures = {head: key for head, key in figures.items() if any(key in r["figures"] for r in results)}
    areas = {"AUROC": "auroc", "AUROC of 1−c": "confidence_auroc"}
    areas = {head: key for head, key in areas.items() if key == "auroc" or any(r[key] is not None for r in results)}
    heads = [*figures, *areas, "samples/s"]
    lines = [f"| method | noise | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(heads)}"]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in sorted(results, key=lambda r: r["cell"]["rate"]):
        rate, kind = r["cell"]["rate"], r["cell"]["kind"]
        cells.setdefault((f"{rate:.0%}{' ' + kind if rate else ''}", r["cell"]["row"]["name"]), []).append(r)
    for (noisy, name), mine in cells.items():
        texts = [shown([r["figures"][key] for r in mine if key in r["figures"]]) for key in figures.values()]
        known = [[r[key] for r in mine if r[key] is not None] for key in areas.values()]
        texts += [f"{statistics.mean(found):.3f}" if found else "" for found in known]
        texts.append(f"{statistics.mean(r['samples_per_s'] for r in mine):.0f}")
        lines.append(f"| {name} | {noisy} | {' | '.join(texts)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", default=["shuffle"], help="of noise; rate 0 is run once")
    parser.add_argument("--rows", nargs="+", default=[], help="of the table, by name; default: all but NEVER's")
    parser.add_argument("--model", default="", help="towers of every row; default: each method's own")
    parser.add_argument("--completion-start", type=int, default=12, help="of nlip")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.4])
    parser.add_argument(
        "--image-model", default="", help="of truepair embed: guidance for SoftCLIP from stored features"
    )
    parser.add_argument("--text-model", default="", help="the same for texts")
    args = parser.parse_args()
    guided = bool(args.image_model and args.text_model)
    usual = [row.name for row in rows(0, guided, args.completion_start)]
    if unknown := set(args.rows) - set(usual):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {'; '.join(usual)}")
    wanted = args.rows or [name for name in usual if name not in {row.name for row in NEVER}]

    work = prepared(args.out)
    noises = list(dict.fromkeys((kind if rate else args.kinds[0], rate) for kind in args.kinds for rate in args.rates))
    grid = list(itertools.product(args.seeds, noises))
    tables = {(*what, seed): table_of(work, *what, seed, args.image_model, args.text_model) for seed, what in grid}
    cells = [
        Cell(row, *what, seed)
        for seed, what in grid
        for row in rows(what[1], guided, args.completion_start, args.model)
        if row.name in wanted
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda cell: run(cell, work, tables[cell.kind, cell.rate, cell.seed]), cells))
    (work / "results.json").write_text(json.dumps(results, indent=1))
    print("\n".join(table_lines(results)))
    for r, cell in zip(results, cells, strict=True):
        if m := r["mined"]:
            precision = m["new_true"] / max(m["new_positives"], 1e-9)
            recall = m["new_true"] / max(m["false_negatives"], 1e-9)
            print(f"{cell.name}: of the pairs found by similarity {precision:.1%} true, {recall:.1%} of all there were")


if __name__ == "__main__":
    main()
