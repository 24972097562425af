"""The main job on data made on the spot: corrupt, train CLIP and a robust method, compare, report."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from truepair.config import RunConfig, from_toml, to_toml
from truepair.errors import UserError
from truepair.noise.tables import corrupt_table
from truepair.pairs.corpora import CorpusUnavailable
from truepair.pairs.corpora.tables import Corpus, make_tables
from truepair.pairs.table import PairTable
from truepair.report import run_report

METHODS = ("clip", "gate")
RATE = 0.4
RECIPE = Path(__file__).with_name("demo.toml")
SCENES = 8_000  # training pairs of the fall-back corpus


def run_demo(out: Path, *, seed: int, corpus: Corpus, console: Console) -> dict[str, Any]:
    """Run the demo in directory `out` and write `out`/report.html.

    The methods train side by side, a process each on its share of the cores: small models use several cores badly.
    Returns {"clip": {"top1", "top5", "r1" (percent, unseen artist), "auroc" (0-1), "samples_per_s"}, "gate": {…},
    "seconds": …, "corpus": …}. Runs of an earlier demo in `out` are replaced; the corpus is kept.
    """
    corpus, folder = _corpus(out, corpus, seed, console)
    began = time.perf_counter()
    noisy = out / f"{corpus}-noisy"
    shutil.rmtree(noisy, ignore_errors=True)
    made = corrupt_table(PairTable.open(folder / "train"), noisy, "shuffle", RATE, seed)
    console.print(f"{made.rows:,} pairs; captions of {made.nominal:.0%} shuffled ({made.effective:.1%} fit no more)")

    shutil.rmtree(out / "runs", ignore_errors=True)
    (out / "runs").mkdir()
    runs = {method: out / "runs" / method for method in METHODS}
    threads = max(1, (os.cpu_count() or 1) // len(METHODS))
    processes = []
    for method, run in runs.items():
        recipe = run.with_suffix(".toml")
        recipe.write_text(to_toml(_config(method, noisy, folder, run, seed, threads)), encoding="utf-8")
        processes.append(_start(recipe, threads))
    _watch(processes, runs, console)
    result = {method: _figures(run) for method, run in runs.items()}
    run_report(list(runs.values()), out / "report.html", title="truepair demo")
    return result | {"seconds": round(time.perf_counter() - began, 1), "corpus": corpus}


def _start(recipe: Path, threads: int) -> subprocess.Popen[bytes]:
    """`truepair train` on a recipe, in a process of its own; what it says goes into a file beside the recipe."""
    with recipe.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "truepair", "train", "--config", str(recipe)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )


def _watch(processes: list[subprocess.Popen[bytes]], runs: dict[str, Path], console: Console) -> None:
    """Show how far the runs are until they end. Raises UserError with the last words of one that fails."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        tasks = {run: progress.add_task(method, total=1.0, said="starting") for method, run in runs.items()}
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no run outlives us
        try:
            while None in (ends := [process.poll() for process in processes]) and not any(ends):
                time.sleep(0.5)
                for run, task in tasks.items():
                    if line := _last_line(run):
                        said = f"loss {line['loss'] or math.nan:.2f} · {line['samples_per_s']:,.0f} samples/s"
                        progress.update(
                            task, completed=line["epoch"], total=from_toml(run / "run.toml").epochs, said=said
                        )
        finally:  # after a signal to us or after one failed, the others save and end
            signal.signal(signal.SIGTERM, before)
            for process in processes:
                process.terminate()
                process.wait()
    for process, run in zip(processes, runs.values(), strict=True):
        if process.returncode not in (0, 130, -signal.SIGTERM):
            words = run.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"{run.name} failed: {words[-1] if words else f'exit {process.returncode}'}")
    if any(process.returncode for process in processes):
        raise KeyboardInterrupt  # somebody stopped a run


def _last_line(run: Path) -> dict[str, Any] | None:
    """The newest figures of a training step, None before the first."""
    lines = [line for line in _metrics(run) if line["kind"] == "train"] if (run / "metrics.jsonl").exists() else []
    return lines[-1] if lines else None


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are whole."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _corpus(out: Path, corpus: Corpus, seed: int, console: Console) -> tuple[Corpus, Path]:
    """The corpus asked for, or scenes where emoji cannot be fetched."""
    console.print(f"{corpus}: making the corpus in {out / corpus} (kept; the first time takes a minute)")
    try:
        made = make_tables(corpus, out / corpus, n=SCENES, seed=seed)
    except CorpusUnavailable as error:
        console.print(f"no emoji here ({error}); going on with generated scenes")
        return _corpus(out, "scenes", seed, console)
    console.print(f"{made.train:,} pairs to train on, {made.test:,} pictures held out in {made.classes:,} classes")
    for style in made.styles:
        console.print(f"  {style.name}: {style.author}, {style.licence}")
    return corpus, out / corpus


def _config(method: str, table: Path, corpus: Path, run: Path, seed: int, threads: int) -> RunConfig:
    config = from_toml(RECIPE)
    config.method, config.data, config.out, config.seed = method, str(table), str(run), seed
    config.eval.zeroshot, config.eval.retrieval = str(corpus / "zeroshot"), str(corpus / "test")
    config.workers = 0 if threads == 1 else 2  # a decoding process would only take the core from the training
    return config


def _figures(run: Path) -> dict[str, float]:
    """The demo's figures of a run: the last evaluation in percent, the last noise model's AUROC, the median speed."""
    lines = _metrics(run)
    fits = [line["auroc"] for line in lines if "auroc" in line]
    evaluated = [line for line in lines if line["kind"] == "eval"][-1]
    if not fits:
        raise UserError(f"{run} fitted no noise model; too few epochs in {RECIPE}")
    return {
        "top1": round(100 * evaluated["top1"], 4),
        "top5": round(100 * evaluated["top5"], 4),
        "r1": round(100 * evaluated["text_to_image_r1"], 4),
        "auroc": round(fits[-1], 4),
        "samples_per_s": round(median(line["samples_per_s"] for line in lines if line["kind"] == "train"), 1),
    }


def table_of(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    rate = f"{RATE:.0%}"
    title = f"{result['corpus']}, {rate} shuffled captions; evaluated on pictures by an unseen artist"
    table = Table(title=title if result["corpus"] == "emoji" else f"{result['corpus']}, {rate} shuffled captions")
    table.add_column("method")
    for name in ("top-1 %", "top-5 %", "R@1 % (text→image)", "noise AUROC", "samples/s"):
        table.add_column(name, justify="right")
    for method in METHODS:
        row = result[method]
        table.add_row(
            method,
            f"{row['top1']:.1f}",
            f"{row['top5']:.1f}",
            f"{row['r1']:.1f}",
            f"{row['auroc']:.3f}",
            f"{row['samples_per_s']:,.0f}",
        )
    table.caption = f"{result['seconds']:.0f} s"
    return table
