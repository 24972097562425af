"""The verbs that judge with a model: `audit` the pairs of a table, `eval` the model itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console, counting
from truepair.cli.settings import Flag, checked_batch_size, checked_workers, loaded_model
from truepair.errors import UserError


@dataclass
class Audit:
    """Score every pair of a table with a model: how well it matches, how probably it is noise. Worst pairs first.

    Examples:
      truepair audit table --model run --out audit
      truepair audit table --model open_clip:ViT-B-32:openai --worst 50 --out audit
    """

    table: tyro.conf.Positional[Path]  # a pair table
    model: str  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    out: Path  # directory for audit.parquet
    worst: int = 10  # pairs to print
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Eval:
    """Evaluate a model: zero-shot classification, retrieval, noise detection.

    Examples:
      truepair eval run --zeroshot imagenet/val --retrieval coco-table
      truepair eval open_clip:ViT-B-32:openai --noise noisy --json
    """

    model: tyro.conf.Positional[str]  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    zeroshot: tuple[Path, ...] = ()  # image folders or CLIP_benchmark datasets
    retrieval: tuple[Path, ...] = ()  # pair tables
    noise: tuple[Path, ...] = ()  # pair tables with a truth column is_noise
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


def audit(args: Audit) -> dict[str, Any]:
    from truepair.evaluate import audit
    from truepair.pairs.table import PairTable

    if args.worst < 0:
        raise UserError(f"--worst {args.worst} makes no sense; 0 prints none")
    table = PairTable.open(args.table)
    with counting("scoring", len(table)) as advance:
        result = audit(
            loaded_model(args.model, args.device),
            table,
            args.out,
            batch_size=checked_batch_size(args.batch_size),
            workers=checked_workers(args.workers),
            progress=advance,
        )
    console.print(f"{result.n:,} pairs scored, of which {result.expected_noise:,.0f} are expected to be mismatched")
    if result.scores.mixture.degenerate:
        console.print(f"no noise model: {result.scores.mixture.degenerate}; p_noise is 0", style="yellow")
    if result.figures:
        console.print(f"against is_noise: AUROC {result.figures.auroc:.3f}, AP {result.figures.average_precision:.3f}")
    captions = table.captions()
    for row in result.worst(args.worst):
        texts = " | ".join(captions[row])
        p_noise, cosine = result.scores.p_noise[row], result.scores.cosine[row]
        console.print(f"  p {p_noise:.2f}  cos {cosine:+.3f}  row {row}  {texts[:90]!r}")
    for reason, count in result.skipped.items():
        console.print(f"  not scored {count:,}: {reason}")
    console.print(f"all rows: {result.file}")
    return result.to_json()


def evaluate(args: Eval) -> dict[str, Any]:
    from truepair.evaluate import ImageClasses, noise_detection, retrieval, zero_shot
    from truepair.pairs.table import PairTable

    if not (args.zeroshot or args.retrieval or args.noise):
        raise UserError("say what to evaluate on: --zeroshot DIR, --retrieval TABLE, --noise TABLE")
    model = loaded_model(args.model, args.device)
    how: dict[str, Any] = {"batch_size": checked_batch_size(args.batch_size), "workers": checked_workers(args.workers)}
    results = [zero_shot(model, ImageClasses.open(path), **how).to_json() for path in args.zeroshot]
    results += [retrieval(model, PairTable.open(path), **how).to_json() for path in args.retrieval]
    results += [noise_detection(model, PairTable.open(path), **how).to_json() for path in args.noise]
    for result in results:
        named = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
        console.print(f"{result['task']} on {result['dataset']}: {named}")
    return {"results": results}
