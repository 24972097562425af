"""The sentences at the head of the audit page and the commands it gives to type."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from truepair.noise import far_off
from truepair.report.audit.keeping import Ledger
from truepair.report.audit.record import MISMATCHED_PAIR, AuditRecord

THRESHOLD = 0.5  # where the audit names none


@dataclass(frozen=True)
class Result:
    """How many pairs are mismatched. count, rate: NaN where it is not known, and `sure` says why.

    sure: how far to trust it. real: what the truth column says, "" if there is none.
    """

    count: float
    scored: int
    rate: float
    sure: str
    real: str


def result(record: AuditRecord) -> Result:
    """From labels if there are some, else from the sum of p_noise."""
    known = np.isfinite(record.p_noise)
    scored, real = int(known.sum()), ""
    if record.truth is not None and scored:
        noisy = int(record.truth[known].sum())
        real = f"Really mismatched, as the column is_noise has it: {noisy:,} ({percent(noisy / scored)})."
    calibration, mixture = record.about.get("calibration"), record.mixture
    if calibration and calibration.get("rate") is not None:
        rate, low, high = (float(calibration[name]) for name in ("rate", "low", "high"))
        sure = (
            f"{100 * calibration['level']:.0f} % interval {100 * low:.1f}–{100 * high:.1f} %, "
            f"from {calibration['labelled']:,} labelled pairs"
        )
        unsure = int(calibration.get("unsure") or 0)
        return Result(rate * scored, scored, rate, sure + (f" ({unsure:,} more unsure)." if unsure else "."), real)
    if not scored:
        return Result(math.nan, 0, math.nan, "No pair could be scored.", real)
    if mixture is not None and mixture.degenerate:
        sure = f"The losses do not fall into two groups ({mixture.degenerate}), so the model gives no estimate."
        return Result(math.nan, scored, math.nan, sure, real)
    expected = float(record.p_noise[known].sum(dtype=np.float64))
    labels = record.about.get("to_label") or {}
    sure = "This is the model's own estimate; it can be far off: trust the order of the pairs before their number."
    if record.truth is not None and far_off(expected / scored, float(record.truth[known].mean())):
        sure = "This is the model's own estimate, and it is far off: trust the order of the pairs, not their number."
    if drawn := len(labels.get("rows") or []):
        sure += f" Label the {drawn:,} pairs drawn for it, and it gets a confidence interval."
    return Result(expected, scored, expected / scored, sure, real)


def figures_sentence(record: AuditRecord) -> str:
    """How well p_noise finds mismatched pairs, where the truth is known; else ""."""
    found = record.about.get("figures") or {}
    auroc, precision = found.get("auroc"), found.get("average_precision")
    if auroc is None or not math.isfinite(auroc):
        return ""
    said = f"A mismatched pair is doubted more than a matched one {100 * auroc:.1f} times in a hundred (AUROC)"
    if precision is not None and math.isfinite(precision):
        said += f"; average precision {precision:.3f}"
    return said + "."


def command(record: AuditRecord) -> str:
    """The command that made this audit, which what is asked of it next is added to. Given again it scores nothing."""
    settings = record.about.get("settings") or {}
    model = _model(record)
    words = ["truepair", "audit", str(record.about.get("table", "")), "--model", model, "--out", str(record.folder)]
    for flag, values in (
        ("--issues", settings.get("issues") or []),
        ("--against", [str(other["table"]) for other in settings.get("against") or []]),
        ("--expect-language", [settings["language"]] if settings.get("language") else []),
    ):
        words += [flag, *map(str, values)] if values else []
    asked_itm = (settings.get("scores") or {}).get("itm", True)
    if not asked_itm and ":" not in model:
        words.append("--no-itm")  # a run may have a fusion encoder, which this audit left out
    return quoted(words)


def _model(record: AuditRecord) -> str:
    """The model as it was typed; where only its own name is known, what is typed for one of that name."""
    name = str(record.about.get("model", ""))
    if called := (record.about.get("settings") or {}).get("called"):
        return str(called)
    checkpoint = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") and checkpoint.parent.name == "checkpoints":
        return str(checkpoint.parent.parent)
    return name


def quoted(words: Sequence[str]) -> str:
    """Words as a POSIX shell reads them."""
    return " ".join(shlex.quote(word) for word in words)


def threshold(record: AuditRecord) -> float:
    """The p_noise from which pairs are left out, as the audit was told, in whole thousandths."""
    value = (record.about.get("settings") or {}).get("threshold", THRESHOLD)
    return round(min(max(float(value), 0.0), 1.0), 3)


def left_out_by_default(record: AuditRecord) -> list[str]:
    """Issues whose flagged pairs a keep list leaves out if not told otherwise."""
    return [issue.name for issue in record.looked_for if issue.action == "drop" and issue.name != MISMATCHED_PAIR]


def left_out(record: AuditRecord) -> list[str]:
    """Issues whose flagged pairs this audit's keep list leaves out."""
    told = (record.about.get("settings") or {}).get("drop")
    return left_out_by_default(record) if told is None else [str(name) for name in told]


def percent(share: float) -> str:
    """With one decimal, "under 0.1 %" for the smallest."""
    if 0 < share < 0.001:
        return "under 0.1\u00a0%"
    return f"{100 * share:.1f}\u00a0%"


def parts_of(path: str) -> str:
    """The last part of a path or model name, for a title."""
    return Path(path).name or path


def expected_sentence(ledger: Ledger) -> str:
    """What the threshold does to the mismatched pairs that p_noise expects."""
    if ledger.expected <= 0:
        return ""
    return (
        f"Of about {ledger.expected:,.0f} mismatched pairs the threshold leaves out {ledger.expected_over:,.0f} "
        f"({_share(ledger.expected_over, ledger.expected)}), with {ledger.over - ledger.expected_over:,.0f} matched "
        f"ones. About {ledger.expected_kept:,.0f} mismatched pairs stay among those that remain "
        f"({_share(ledger.expected_kept, ledger.remain)})."
    )


def real_sentence(ledger: Ledger) -> str:
    """What it does to the really mismatched pairs."""
    return (
        f"Really, by the column is_noise: precision {_share(ledger.noisy_over, ledger.over)}, recall "
        f"{_share(ledger.noisy_over, ledger.noisy)}; {ledger.noisy_kept:,} mismatched pairs stay "
        f"({_share(ledger.noisy_kept, ledger.remain)})."
    )


def keep_command(record: AuditRecord, threshold: float) -> str:
    """The command that writes the keep list of this audit: `keep_base` and the script add to it in the same way."""
    names = left_out(record)
    drop = "" if set(names) == set(left_out_by_default(record)) else f" --drop {' '.join(names) or 'none'}"
    return f"{keep_base(record)} --threshold {threshold:g}{drop}"


def keep_base(record: AuditRecord) -> str:
    """The command with the labels that p_noise was recalibrated by."""
    settings = record.about.get("settings") or {}
    labels = f" --labels {shlex.quote(str(settings['labels']))}" if settings.get("labels") else ""
    return command(record) + labels + (" --labels-random" if settings.get("labels_random") else "")


def labels_command(record: AuditRecord) -> str:
    return f"{command(record)} --labels labels.csv"


def first_sentence(text: str) -> tuple[str, str]:
    """A text as its first sentence and the rest."""
    first, stop, rest = text.partition(". ")
    return first + stop.strip(), rest


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else "–"
