"""The main job on data made on the spot: corrupt, train CLIP and a robust method, compare, report."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from truepair.config import RunConfig, from_toml
from truepair.errors import UserError
from truepair.noise.tables import corrupt_table
from truepair.pairs.corpora import CorpusUnavailable
from truepair.pairs.corpora.tables import Corpus, make_tables
from truepair.pairs.table import PairTable
from truepair.report import run_report
from truepair.train import train

METHODS = ("clip", "gate")
RATE = 0.4
RECIPE = Path(__file__).with_name("demo.toml")
SCENES = 8_000  # training pairs of the fall-back corpus


def run_demo(out: Path, *, seed: int, corpus: Corpus, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo in directory `out` and write `out`/report.html.

    Returns {"clip": {"top1", "top5", "r1" (percent, unseen artist), "auroc" (0-1), "samples_per_s"}, "gate": {…},
    "seconds": …, "corpus": …}. Runs of an earlier demo in `out` are replaced; the corpus is kept.
    """
    corpus, folder = _corpus(out, corpus, seed, say)
    began = time.perf_counter()
    noisy = out / f"{corpus}-noisy"
    shutil.rmtree(noisy, ignore_errors=True)
    made = corrupt_table(PairTable.open(folder / "train"), noisy, "shuffle", RATE, seed)
    say(f"{made.rows:,} pairs; captions of {made.nominal:.0%} shuffled ({made.effective:.1%} fit no more)")
    result: dict[str, Any] = {}
    for method in METHODS:
        run = out / "runs" / method
        shutil.rmtree(run, ignore_errors=True)
        ended = train(_config(method, noisy, folder, run, seed))
        if ended.interrupted:
            raise KeyboardInterrupt
        result[method] = _figures(run, ended.figures, ended.samples_per_s)
    run_report([out / "runs" / method for method in METHODS], out / "report.html", title="truepair demo")
    return result | {"seconds": round(time.perf_counter() - began, 1), "corpus": corpus}


def _corpus(out: Path, corpus: Corpus, seed: int, say: Callable[[str], None]) -> tuple[Corpus, Path]:
    """The corpus asked for, or scenes where emoji cannot be fetched."""
    say(f"{corpus}: making the corpus in {out / corpus} (kept; the first time takes a minute)")
    try:
        made = make_tables(corpus, out / corpus, n=SCENES, seed=seed)
    except CorpusUnavailable as error:
        say(f"no emoji here ({error}); going on with generated scenes")
        return _corpus(out, "scenes", seed, say)
    say(f"{made.train:,} pairs to train on, {made.test:,} pictures held out in {made.classes:,} classes")
    for style in made.styles:
        say(f"  {style.name}: {style.author}, {style.licence}")
    return corpus, out / corpus


def _config(method: str, table: Path, corpus: Path, run: Path, seed: int) -> RunConfig:
    config = from_toml(RECIPE)
    config.method, config.data, config.out, config.seed = method, str(table), str(run), seed
    config.eval.zeroshot, config.eval.retrieval = str(corpus / "zeroshot"), str(corpus / "test")
    return config


def _figures(run: Path, evaluated: dict[str, Any], samples_per_s: float) -> dict[str, float | None]:
    """The demo's figures of a run: the last evaluation in percent, the last noise model's AUROC."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fits = [line["auroc"] for line in lines if line["kind"] == "noise"]
    if not fits:
        raise UserError(f"{run} fitted no noise model; too few epochs in {RECIPE}")
    return {
        "top1": round(100 * evaluated["top1"], 2),
        "top5": round(100 * evaluated["top5"], 2),
        "r1": round(100 * evaluated["text_to_image_r1"], 2),
        "auroc": round(fits[-1], 4),
        "samples_per_s": round(samples_per_s, 1),
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
