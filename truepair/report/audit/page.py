"""Writes the audit page: what the audit found, its charts, its issues, and the pairs to look at and to mark."""

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from truepair.errors import UserError
from truepair.noise.issues.false_negatives import caution
from truepair.pairs.table import PairTable
from truepair.report.audit import words
from truepair.report.audit.examples import Example, embedded_json, examples, pictures
from truepair.report.audit.figures import figures, p_noise_bars
from truepair.report.audit.keeping import STEPS, tally
from truepair.report.audit.record import AuditRecord, Issue, read_audit
from truepair.report.audit.samples import Sample, samples_of
from truepair.report.render import render, write_page
from truepair.report.thumbnails import Picture

FILE = "audit.html"
PAGE_BYTES = 5_800_000  # of the whole page; pictures take what the rest leaves them, which is 2 MB in the worst case
PICTURE_BYTES = 4_600_000
STATIC = 8  # pairs of each issue that a reader without scripts sees
MOST_TO_LABEL = 400
ACTIONS = ("drop", "merge", "recaption", "review", "keep")  # the gravest first
_NO_PICTURE = Picture("", 128, 128, "")


@dataclass(frozen=True)
class Content:
    """Everything the page shows but the pictures."""

    samples: list[Sample]
    pairs: dict[int, Example]
    words: dict[str, Any]  # of the template
    data: dict[str, Any]  # of the script


def write_audit_page(out: Path, table: PairTable, *, per_issue: int = 24) -> Path:
    """Write `out`/audit.html from the audit.json and audit.parquet in `out`, and return its path.

    table: the audited one, for the pictures. per_issue: worst pairs of each issue to show, and as many borderline ones.
    The page is at most 6 MB whatever the table's size (with up to 64 pairs an issue), is written whole or not at all,
    asks nothing of a network, and is the same for the same audit. Raises UserError if there is no audit in `out`, or it
    is not of `table`.
    """
    out = Path(out)
    record = read_audit(out)
    if len(table) != record.n:
        raise UserError(f"{out} audits {record.n} pairs, the table {table.path} has {len(table)}; audit it again")
    content = _content(record, per_issue)
    room = min(PICTURE_BYTES, max(PAGE_BYTES - len(_page(content, {}).encode("utf-8", "replace")), 0))
    write_page(out / FILE, _page(content, pictures(table, list(content.pairs), room)))
    return out / FILE


def _content(record: AuditRecord, per_issue: int) -> Content:
    samples = [sample for issue in record.looked_for for sample in samples_of(record, issue, per_issue)]
    stratum = _to_label(record)
    sampled = {
        issue.name: len({row for sample in samples if sample.issue == issue.name for row in sample.rows.tolist()})
        for issue in record.looked_for
    }
    looked_for = sorted(record.looked_for, key=_gravity)
    counted, threshold = tally(record, words.left_out(record)), words.threshold(record)
    ledger = counted.ledger(round(threshold * STEPS))
    suggest = next((issue for issue in looked_for if sampled[issue.name] and issue.flagged), None)
    said = {
        "title": f"Audit of {record.about.get('dataset') or words.parts_of(str(record.about.get('table', '')))}",
        "about": {name: record.about.get(name) for name in ("table", "model", "calibration")},
        "n": record.n,
        "result": words.result(record),
        "figures_sentence": words.figures_sentence(record),
        "notes": (record.about.get("calibration") or {}).get("told") or [],
        "skipped": sorted((record.about.get("skipped") or {}).items(), key=lambda item: -item[1]),
        "suggest": suggest,
        "to_label": len(stratum),
        "threshold": f"{threshold:g}",
        "below": 1000 * threshold,
        "ledger": ledger,
        "expected": words.expected_sentence(ledger),
        "real": words.real_sentence(ledger) if record.truth is not None else "",
        "bars": p_noise_bars(counted.by_p),
        "recalibrated": record.recalibrated,
        "keep_command": words.keep_command(record, threshold),
        "labels_command": words.labels_command(record),
        "figures": figures(record),
        "looked_for": looked_for,
        "not_looked_for": [issue for issue in record.issues if issue.skipped],
        "most_flagged": max([issue.flagged for issue in looked_for], default=0) or 1,
        "sampled": sampled,
        "caution": caution,
        "sources": _sources(record),
        "unseen": _unseen(record),
        "percent": words.percent,
        "first_sentence": words.first_sentence,
    }
    data = {
        "storage": _storage_name(record),
        "n": record.n,
        "steps": STEPS,
        "keeping": counted.to_json(),
        "leave": [{"name": issue.name, "grouped": bool(issue.group_column)} for issue in counted.issues],
        "leftOut": counted.left_out,
        "usual": words.left_out_by_default(record),
        "command": words.keep_base(record),
        "issues": [{"name": issue.name, "title": issue.title} for issue in record.looked_for],
        "samples": [_sample_json(sample) for sample in samples],
        "toLabel": list(stratum),
    }
    return Content(samples, examples(record, samples, stratum), said, data)


def _gravity(issue: Issue) -> tuple[bool, int, int]:
    """For sorting: what asks for the gravest action first, of equals the most frequent, what was not found last."""
    place = ACTIONS.index(issue.action) if issue.action in ACTIONS else len(ACTIONS)
    return not issue.flagged, place, -issue.flagged


def _page(content: Content, shown: dict[int, Picture]) -> str:
    """The page with the pictures of some rows; a picture stands in its data once, however many rows have it."""
    picture = {row: shown.get(row, _NO_PICTURE) for row in content.pairs}
    uris = list(dict.fromkeys(one.uri for one in picture.values() if one.uri))
    number = {uri: place for place, uri in enumerate(uris)}
    static = [
        (issue, [(content.pairs[row], picture[row], number.get(picture[row].uri)) for row in rows])
        for issue, rows in _static(content)
    ]
    taken = {place for _, pairs in static for _, _, place in pairs}  # by the script, from where they stand
    data = content.data | {
        "pairs": [pair.to_json() for pair in content.pairs.values()],
        "pictures": ["" if place in taken else uri for place, uri in enumerate(uris)],
        "shapes": {row: _shape(one, number) for row, one in picture.items()},
    }
    script = _own("audit.js")
    hashed = base64.b64encode(sha256(script.encode()).digest()).decode("ascii")
    own = {"script": Markup(script), "script_hash": hashed, "style": Markup(_own("audit.css"))}
    return render("audit/audit.html", **content.words, static=static, data=embedded_json(data), **own)


def _static(content: Content) -> list[tuple[Issue, list[int]]]:
    """The worst rows of each issue for a reader without scripts, none twice."""
    seen: set[int] = set()
    found = []
    for issue in content.words["looked_for"]:
        rows = [row for sample in content.samples if sample.issue == issue.name for row in sample.rows.tolist()]
        rows = [row for row in dict.fromkeys(rows) if row not in seen][:STATIC]
        seen |= set(rows)
        if rows:
            found.append((issue, rows))
    return found


def _to_label(record: AuditRecord) -> dict[int, int]:
    """Row -> stratum of the pairs drawn to be labelled, in an order of chance that is always the same.

    Who stops half-way has then labelled a sample too, even where a table is sorted.
    """
    drawn = record.about.get("to_label") or {}
    rows, strata = drawn.get("rows") or [], drawn.get("stratum") or []
    if len(rows) != len(strata) or not all(0 <= row < record.n for row in rows):
        raise UserError(f"the sample to label in {record.folder / 'audit.json'} is damaged; audit with --again")
    order = np.random.default_rng(0).permutation(len(rows))[:MOST_TO_LABEL].tolist()
    return {rows[place]: strata[place] for place in order}


def _sources(record: AuditRecord) -> list[tuple[str, list[dict[str, Any]], float]]:
    """(kind, its sources, the most suspicious first, the rate of the whole table), where there are at least two."""
    known = record.p_noise[np.isfinite(record.p_noise)]
    whole = float(known.mean(dtype=np.float64)) if len(known) else 0.0
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in record.about.get("sources") or []:
        clean = {name: entry.get(name) or 0 for name in ("n", "doubted", "rate")} | {"name": str(entry["name"])}
        kinds.setdefault(str(entry["kind"]), []).append(clean)
    found = []
    for kind, entries in kinds.items():
        if len(entries) > 1:
            entries.sort(key=lambda entry: (-entry["rate"], -entry["n"], entry["name"]))
            top = 1.05 * max(entries[0]["rate"], whole) or 1.0
            found.append((re.sub("[^a-z]", "", kind), [entry | {"top": top} for entry in entries], whole))
    return found


def _unseen(record: AuditRecord) -> list[tuple[str, int, int, str]]:
    """(second table, its images, how many of them could not be looked at, why)."""
    compared = record.about.get("against") or []
    return [(one["table"], one["images"], count, why) for one in compared for why, count in one["unseen"].items()]


def _sample_json(sample: Sample) -> dict[str, Any]:
    group = {"group": sample.group, "size": sample.size} if sample.size else {}
    return {"issue": sample.issue, "kind": sample.kind, "rows": sample.rows.tolist(), **group}


def _shape(picture: Picture, number: dict[str, int]) -> dict[str, Any]:
    if not picture.uri:
        return {"problem": picture.problem or "none"}
    return {"at": number[picture.uri], "width": picture.width, "height": picture.height}


def _storage_name(record: AuditRecord) -> str:
    """Where a browser keeps the marks: another name for each model, table, and content of its images and captions."""
    scored = (record.about.get("settings") or {}).get("scores") or {}
    parts = [record.about.get(name, "") for name in ("dataset", "table", "model")]
    parts += [record.n, scored.get("images", ""), scored.get("captions", "")]
    return "truepair-marks-" + sha256("\0".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()[:16]


def _own(name: str) -> str:
    return files("truepair.report.audit").joinpath(name).read_text(encoding="utf-8")
