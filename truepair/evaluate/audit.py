"""The audit of a pair table: what a model thinks of every pair, what is wrong with it, and what to do about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truepair.annotate.identity import images
from truepair.errors import UserError
from truepair.evaluate import keeping
from truepair.evaluate.agreement import agreement
from truepair.evaluate.audited import AuditResult, columns, record
from truepair.evaluate.evidence import UNREAD, Seen, evidence_of, second_tables, see_table
from truepair.evaluate.features import Encoder, Progress, reasons, towers_of
from truepair.evaluate.keeping import Judged
from truepair.evaluate.labelled import Calibrated, calibrated, labels_of
from truepair.evaluate.noise import detection_figures, itm_figures
from truepair.evaluate.remembered import (
    FILE,
    RECORD,
    Former,
    former,
    id_of,
    passing,
    recall,
    remember,
    scoring,
    write_columns,
    write_json,
)
from truepair.models.matcher import Matcher
from truepair.noise.issues import ISSUES, Evidence, Found
from truepair.noise.issues.language import LANGUAGES
from truepair.noise.issues.leak import leaked_image
from truepair.noise.scores import NEGATIVES
from truepair.noise.tables import TRUTH
from truepair.pairs.subset import uids as uids_of
from truepair.pairs.subset import write_subset
from truepair.pairs.table import PairTable

KEEP, KEEP_UIDS = "keep.parquet", "keep.npy"
GROUPED_ROWS = 1_000_000  # up to which false negatives are looked for unasked: about an hour on a core (ours)
NOT_ASKED = "it was not asked for (--issues)"


def audit(
    model: Encoder | Matcher,
    table: PairTable,
    out: str | Path,
    *,
    issues: Sequence[str] = (),
    against: Sequence[PairTable] = (),
    language: str = "",
    threshold: float = 0.5,
    drop: Sequence[str] | None = None,
    uids: bool = False,
    labels: str | Path | None = None,
    labels_random: bool = False,
    again: bool = False,
    called: str = "",
    scale: float | None = None,
    negatives: int = NEGATIVES,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Score every row of `table` (see `score_pairs`), look for issues, and write `out`/audit.parquet and audit.json.

    audit.parquet has a row for every pair: row, key, caption (the list in force), cosine, neg_clip_loss, p_noise, itm
    (null where `problem` names why the row has none), problem, is_noise if the table has it, p_noise_recalibrated with
    `labels`; of each issue its score, flag and, where rows are put together, group; action. keep.parquet: rows whose
    p_noise is below `threshold` (the recalibrated one, with labels) without a flag of `drop`; keep.npy with `uids`.
    Each file is written whole or not at all; the table itself is not changed.

    issues: names; by default all that can be looked for. against: tables whose images must not be here. language: that
    captions should be in, by default that of most. drop: names; by default those of the action drop. labels_random:
    the labelled pairs are a uniform random sample of the table, so all count, not only those drawn to be labelled.
    called: what the user calls the model, for the commands that the page shows.
    Scores that the folder holds of the same model, images, captions and settings are taken from there unless `again`,
    and so is what was found then of issues that neither labels nor the arguments change. Memory: that of `see_table`;
    afterwards about 0.5 KB a row.
    Raises UserError as `check_request`, `score_pairs`, `labels_of` and `calibrated` do, for a `drop` that turns out not
    to be looked for, and with `uids` for a table without them.
    """
    out = Path(out)
    check_request(out, issues, drop or (), len(against), language, threshold, labels is not None, labels_random)
    if uids:
        uids_of(table)  # before the work: they may be wrong
    how = {"batch_size": batch_size, "workers": workers}
    scale = float(towers_of(model).scale.detach()) if scale is None else scale
    read = None if labels is None else labels_of(table, Path(labels))  # likewise
    wanted = scoring(model, table, scale, negatives, seed)
    remembered = None if again else recall(out, wanted, table)
    before = None if remembered is None else former(out, wanted)
    seen = remembered
    if seen is None:
        seen = see_table(model, table, scale=scale, negatives=negatives, seed=seed, progress=progress, **how)
        remember(out, seen, wanted)
    compared = [{"table": str(other.path), "images": images(other)} for other in against]
    asked = [issue.name for issue in ISSUES if not issues or issue.name in issues]
    found = {} if before is None else _found_before(before, asked, compared, language)
    made_right = None if read is None else calibrated(seen.scores.p_noise, read, random=labels_random)
    leaks_are_sought = leaked_image.name in asked and leaked_image.name not in found
    seconds = second_tables(model, table, against, **how) if leaks_are_sought else ()
    evidence = evidence_of(
        table,
        seen,
        scale,
        seconds=seconds,
        language=language,
        recalibrated=None if made_right is None else made_right.p_noise,
        without_features=_without_features(len(table), issues, remembered is not None),
    )
    judged = _judged(evidence, asked, found)
    told = before.record["against"] if before and leaked_image.name in found else [one.to_json() for one in seconds]
    settings = {
        "scores": wanted,
        "issues": list(issues),
        "against": compared,
        "language": language,
        "threshold": threshold,
        "called": called,
        "labels": None if labels is None else str(labels),
        "labels_random": labels_random,
    }
    return _written(model, table, out, seen, judged, told, made_right, settings, drop, uids, remembered is not None)


def check_request(
    out: Path,
    issues: Sequence[str],
    drop: Sequence[str],
    against: int,
    language: str,
    threshold: float,
    labelled: bool,
    labels_random: bool,
) -> None:
    """Raises UserError for what no audit can do, whatever the table holds. against: number of second tables."""
    known = [issue.name for issue in ISSUES]
    for flag, names in (("--issues", issues), ("--drop", drop)):
        for name in names:
            if name not in known:
                raise UserError(f"{flag} {name}: there is no such issue; choose among {', '.join(known)}")
    for name in drop:
        if issues and name not in issues:
            raise UserError(f"--drop {name} is not possible: {NOT_ASKED}")
        if name == leaked_image.name and not against:
            raise UserError(f"--drop {name} is not possible: no second table was given (--against TABLE)")
    if language and language not in LANGUAGES:
        raise UserError(f"no language {language!r} is known; choose one of {', '.join(LANGUAGES)}")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold} makes no sense; p_noise is between 0 and 1")
    if labels_random and not labelled:
        raise UserError("--labels-random says how the pairs of a labels.csv were chosen; name it with --labels")
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"{file} is a file, an audit needs a folder; choose another --out")


def _without_features(n: int, issues: Sequence[str], remembered: bool) -> str:
    if remembered:
        return "the scores are those of the last audit, which did not look for it; --again does"
    if n > GROUPED_ROWS and "false_negative_group" not in issues:
        return f"the table has more than {GROUPED_ROWS:,} rows; ask for it with --issues false_negative_group"
    return ""


def _found_before(
    before: Former, asked: Sequence[str], compared: Sequence[dict[str, str]], language: str
) -> dict[str, Found]:
    """What the last audit found of the issues asked for, where the same would be found now."""
    settings = before.record["settings"]
    changed = {
        "mismatched_pair": True,  # there may be labels
        "wrong_language": settings["language"] != language,
        leaked_image.name: settings["against"] != compared or passing(before.record["against"]),
    }
    same = [issue for issue in ISSUES if issue.name in asked and not changed.get(issue.name)]
    found = {issue.name: before.found(issue) for issue in same}
    return {name: one for name, one in found.items() if one is not None}


def _judged(evidence: Evidence, asked: Sequence[str], found: Mapping[str, Found]) -> tuple[Judged, ...]:
    """Every issue, as it was `found` before or as it is looked for."""
    judged = []
    for issue in ISSUES:
        if issue.name not in asked:
            judged.append(Judged(issue, None, NOT_ASKED))
        elif issue.name in found:
            judged.append(Judged(issue, found[issue.name]))
        elif lacking := issue.lacks(evidence):
            judged.append(Judged(issue, None, lacking))
        else:
            judged.append(Judged(issue, issue.find(evidence, issue.threshold)))
    return tuple(judged)


def _written(
    model: Encoder | Matcher,
    table: PairTable,
    out: Path,
    seen: Seen,
    judged: tuple[Judged, ...],
    against: list[dict[str, Any]],
    made_right: Calibrated | None,
    settings: dict[str, Any],
    drop: Sequence[str] | None,
    uids: bool,
    remembered: bool,
) -> AuditResult:
    scores, truth = seen.scores, np.asarray(table.numbers(TRUTH)) if TRUTH in table.column_names else None
    known = ~np.isnan(scores.neg_clip_loss)
    p_noise = scores.p_noise if made_right is None else made_right.p_noise
    looked_for = {one.issue.name: one for one in judged if one.found is not None}
    drop = keeping.default_drop(judged) if drop is None else drop
    if missing := [name for name in drop if name not in looked_for]:
        raise UserError(f"--drop {missing[0]} is not possible: {_reason(judged, missing[0])}")
    kept = keeping.kept_rows(p_noise, scores.neg_clip_loss, settings["threshold"], looked_for, drop)
    grave = keeping.actions(len(table), judged, [row for row, reason in scores.skipped if reason == UNREAD])
    agreed = None if scores.itm is None else agreement(scores.p_noise, 1 - scores.itm)
    result = AuditResult(
        scores=scores,
        judged=judged,
        against=against,
        kept=kept,
        record={},
        file=out / FILE,
        files=tuple(out / name for name in (FILE, RECORD, KEEP, *([KEEP_UIDS] if uids else []))),
        n=len(table),
        scored=int(known.sum()),
        expected_noise=float(scores.p_noise[known].sum(dtype=np.float64)),
        figures=None if truth is None else detection_figures(scores, truth),
        dataset=table.path.name,
        model=towers_of(model).name,
        skipped=reasons(scores.skipped),
        itm_figures=None if truth is None else itm_figures(scores, truth),
        agreement=agreed,
        recalibrated=None if made_right is None else made_right.p_noise,
        remembered=remembered,
    )
    result.record.update(record(result, table, settings | {"drop": list(drop)}, truth, made_right, grave))
    result.record["id"] = id_of(result.record)
    (out / RECORD).unlink(missing_ok=True)  # until it is written again, what lies there is no audit
    write_columns(out / FILE, columns(result, table, truth, made_right, grave), result.record["id"])
    write_subset(table, kept, out / KEEP)
    if uids:
        write_subset(table, kept, out / KEEP_UIDS)
    write_json(out / RECORD, result.record)
    return result


def _reason(judged: Sequence[Judged], name: str) -> str:
    return next(one.skipped for one in judged if one.issue.name == name)
