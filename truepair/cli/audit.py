"""The verb that audits a pair table: scores, issues, lists of rows to keep, and the page to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console, counting
from truepair.cli.settings import Flag, checked_batch_size, checked_workers, found_matcher, loaded_model
from truepair.errors import UserError

UNLEARNT = 0.95  # share of the pairs doubted by an ITM that has learnt little: it meets two mismatches a match (ours)
LONGEST = 90  # characters of a caption


@dataclass
class Audit:
    """Score every pair of a table with a model, look for what is wrong, and say which rows to keep. Worst pairs first.

    A RUN with a fusion encoder (--method never) is also asked how probably each caption describes its image (itm),
    unless --no-itm is given. The same command again takes the scores it finds in OUT.

    Examples:
      truepair audit table --model run --out audit
      truepair audit table --model open_clip:ViT-B-32:openai --against coco_test --worst 50 --out audit
      truepair audit table --model run --out audit --labels labels.csv --threshold 0.3 --uids
      truepair audit table --model run --out audit --drop broken_image leaked_image near_duplicate_image
      truepair audit table --model run --out audit --to doubted
    """

    table: tyro.conf.Positional[Path]  # a pair table
    model: str  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    out: Path  # directory for audit.parquet, audit.json, audit.html and keep.parquet
    issues: tuple[str, ...] = ()  # look for these alone; default: all that can be looked for
    against: tuple[Path, ...] = ()  # pair tables to be tested on: which of their images are here?
    expect_language: str = ""  # of captions: en, de, …, ja; default: that of most
    threshold: float = 0.5  # rows to keep have a p_noise below it
    drop: tuple[str, ...] = ()  # issues whose rows are not kept, or none; default: broken_image and leaked_image
    uids: Flag = False  # write keep.npy too, DataComp's uids of the rows to keep
    labels: Path | None = None  # labels.csv of the page: makes p_noise right, and says how noisy the table is
    labels_random: Flag = False  # its pairs are no page's sample but a uniform random one of the table: all count
    again: Flag = False  # score anew, whatever OUT holds
    to: Path | None = None  # write a new table too: this one with the column p_noise (1 for pairs not scored)
    no_itm: Flag = False  # leave a RUN's fusion encoder out: a pass less for every caption
    no_html: Flag = False  # write no page
    worst: int = 10  # pairs to print
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


def audit(args: Audit) -> dict[str, Any]:
    import numpy as np

    from truepair.evaluate.audit import audit, check_request
    from truepair.pairs.table import PairTable

    if args.worst < 0:
        raise UserError(f"--worst {args.worst} makes no sense; 0 prints none")
    table = PairTable.open(args.table)
    if args.to is not None and args.to.exists():
        raise UserError(f"{args.to} exists already; choose another --to")
    drop = () if args.drop == ("none",) else args.drop or None
    check_request(
        args.out,
        args.issues,
        drop or (),
        against=len(args.against),
        language=args.expect_language,
        threshold=args.threshold,
        labelled=args.labels is not None,
        labels_random=args.labels_random,
    )
    against = [PairTable.open(path) for path in args.against]
    matcher = None if args.no_itm else found_matcher(args.model, args.device)
    model: Any = matcher or loaded_model(args.model, args.device)
    with counting("scoring", len(table)) as advance:
        result = audit(
            model,
            table,
            args.out,
            issues=args.issues,
            against=against,
            language=args.expect_language,
            threshold=args.threshold,
            drop=drop,
            called=args.model,
            uids=args.uids,
            labels=args.labels,
            labels_random=args.labels_random,
            again=args.again,
            batch_size=checked_batch_size(args.batch_size),
            workers=checked_workers(args.workers),
            progress=advance,
        )
    _say_scores(result)
    _say_issues(result)
    _say_worst(result, table, args.worst)
    told = result.to_json()
    if args.to is not None:
        made = {"by": "truepair audit", "model": args.model, "labels": str(args.labels or "")}
        table.derive(args.to).add_column("p_noise", np.nan_to_num(result.p_noise, nan=1.0), made)
        console.print(f"with the column p_noise: {args.to}")
    if not args.no_html:
        from truepair.report.audit import write_audit_page

        told["files"].append(str(write_audit_page(args.out, table)))
    console.print(f"written: {', '.join(told['files'])}")
    console.print(_next(args, told))
    return told


def _say_scores(result: Any) -> None:
    from truepair.noise import far_off

    again = " by the model alone" if result.recalibrated is not None else ""
    again += " (scores of the last audit)" if result.remembered else ""
    console.print(
        f"{result.scored:,} pairs scored, of which {result.expected_noise:,.0f} are expected to be mismatched{again}"
    )
    for reason, count in result.skipped.items():
        console.print(f"  not scored {count:,}: {reason}")
    if result.scores.mixture.degenerate:
        console.print(f"no noise model: {result.scores.mixture.degenerate}; p_noise is 0", style="yellow")
    if told := result.record["calibration"]:
        low, high, level = (100 * told[name] for name in ("low", "high", "level"))
        console.print(
            f"by {told['labelled']:,} labels {100 * told['rate']:.1f} % of the pairs are mismatched ({level:.0f} % "
            f"interval {low:.1f} to {high:.1f}); p_noise recalibrated ({told['kind']})"
        )
        for sentence in told["told"]:
            console.print(f"  labels: {sentence}")
    if result.figures:
        console.print(f"against is_noise: AUROC {result.figures.auroc:.3f}, AP {result.figures.average_precision:.3f}")
        expected = result.expected_noise / result.scored
        if result.recalibrated is None and far_off(expected, result.figures.rate):
            console.print(
                f"is_noise says {result.figures.rate:.0%}, p_noise {expected:.0%}: trust the order of the pairs, not "
                "how many there are",
                style="yellow",
            )
    if result.itm_figures:
        figures = result.itm_figures
        console.print(f"  of 1 - itm: AUROC {figures.auroc:.3f}, AP {figures.average_precision:.3f}")
    if result.agreement:
        agreed = result.agreement
        console.print(
            f"p_noise and 1 - itm: rank correlation {agreed.rank_correlation:+.3f}; doubted (at least 1/2) by both "
            f"{agreed.both:,}, by p_noise alone {agreed.first:,}, by itm alone {agreed.second:,}, "
            f"by neither {agreed.neither:,}"
        )
        if agreed.both + agreed.second >= UNLEARNT * agreed.n:
            console.print(
                "ITM doubts nearly every pair: it has hardly learnt to match (itm_accuracy in the run's log near 0.67);"
                " trust its order, if at all, and not its probabilities",
                style="yellow",
            )


def _say_issues(result: Any) -> None:
    """A line an issue: how many rows have it of how many judged, and what to do; or why it was not looked for."""
    from rich.table import Table

    from truepair.noise.issues.false_negatives import caution

    shown = Table(box=None, pad_edge=False)
    for name, justify in (("issue", "left"), ("flagged", "right"), ("judged", "right"), ("action", "left")):
        shown.add_column(name, justify=justify)  # type: ignore[arg-type]
    for issue in result.record["issues"]:
        if issue["skipped"] is None:
            shown.add_row(issue["name"], f"{issue['flagged']:,}", f"{issue['judged']:,}", issue["action"])
    console.print(shown)
    for issue in result.record["issues"]:
        if issue["skipped"] is not None:
            console.print(f"  {issue['name']} was not looked for: {issue['skipped']}")
        elif said := caution(issue["name"], issue["flagged"], issue["judged"]):
            console.print(f"  {issue['name']}: {said}", style="yellow")
    for second in result.against:
        for reason, count in second["unseen"].items():
            console.print(
                f"  leaked_image: {count:,} of {second['images']:,} images of {second['table']} could not be looked at "
                f"({reason}); only the very same files are found",
                style="yellow",
            )


def _say_worst(result: Any, table: Any, count: int) -> None:
    captions = table.captions()
    certain = result.scores.p_noise if result.recalibrated is None else result.recalibrated
    for row in result.worst(count):
        texts = " | ".join(text[:LONGEST] for text in captions[row][:LONGEST])[:LONGEST]
        p_noise, cosine = certain[row], result.scores.cosine[row]
        itm = "" if result.scores.itm is None else f"  itm {result.scores.itm[row]:.2f}"
        console.print(f"  p {p_noise:.2f}  cos {cosine:+.3f}{itm}  row {row}  {texts!r}")


def _next(args: Audit, told: dict[str, Any]) -> str:
    """What to do now, in one line."""
    kept = f"{told['kept']:,} of {told['n']:,} rows (p_noise below {args.threshold:g})"
    if not told["kept"]:
        return f"next: no row has a p_noise below {args.threshold} and no flag that leaves it out; raise --threshold"
    train = f"truepair train --data {args.table} --keep {args.out / 'keep.parquet'} …"
    if not args.no_html and told["calibration"] is None:
        return f"next: look at {args.out / 'audit.html'} and label its sample; or train on {kept}: {train}"
    return f"next: train on {kept}: {train}"
