"""The pairs of the page as it holds them: words cut to size, scores, pictures small enough to travel inside it."""

import base64
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from truepair.pairs.table import PairTable
from truepair.report.audit.record import AuditRecord, Text
from truepair.report.audit.samples import Sample
from truepair.report.thumbnails import Picture, picture

MOST_CAPTIONS = 5
LONGEST_TEXT = 4000  # characters of a pair's captions together
ALL_TEXT = 1_200_000  # bytes of all captions of the page as written in it
LONGEST_KEY = 300
QUALITIES = ((128, 85), (128, 65), (128, 45), (96, 40), (64, 30), (48, 20))  # JPEG: longer side, quality
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Example:
    """A pair of the page. All text is hostile until the page escapes it.

    captions: of one line each, cut together to what the page has room for. cut: characters left out of them, more:
    captions left out. whole_key: the key was not cut.
    scores: by issue; flags: issues that flag the pair; groups: issue -> number. p_noise: NaN where it is not known.
    truth: really mismatched; None where it is not known. stratum: it was drawn from to be labelled, -1 if it was not.
    """

    row: int
    key: str
    whole_key: bool
    captions: list[str]
    cut: int
    more: int
    problem: str
    action: str
    p_noise: float
    numbers: dict[str, float]
    scores: dict[str, float]
    flags: list[str]
    groups: dict[str, int]
    truth: bool | None
    stratum: int

    def to_json(self) -> dict[str, Any]:
        """Only what is known of the pair: what is false, empty or NaN is left out."""
        values: dict[str, Any] = {
            "key": self.key,
            "cutKey": not self.whole_key,
            "captions": self.captions,
            "cut": self.cut,
            "more": self.more,
            "problem": self.problem,
            "action": self.action,
            "numbers": {name: value for name, value in self.numbers.items() if math.isfinite(value)},
            "scores": {name: value for name, value in self.scores.items() if math.isfinite(value)},
            "flags": self.flags,
            "groups": self.groups,
        }
        known = {name: value for name, value in values.items() if value}
        known |= {} if math.isnan(self.p_noise) else {"p": self.p_noise}
        known |= {} if self.truth is None else {"truth": self.truth}
        return {"row": self.row, **known, **({"stratum": self.stratum} if self.stratum >= 0 else {})}


def examples(record: AuditRecord, samples: list[Sample], stratum: dict[int, int]) -> dict[int, Example]:
    """Every row of some samples and of `stratum` (row -> stratum, the rows to label), by row, ascending."""
    rows = _union([sample.rows for sample in samples] + [np.fromiter(stratum, np.int64, len(stratum))])
    texts, numbers = record.texts_at(rows), record.numbers_at(rows)
    p_noise = record.p_noise[rows]
    scores = {issue.name: record.scores_of(issue)[rows] for issue in record.looked_for}
    flags = {issue.name: record.flags_of(issue)[rows] for issue in record.looked_for}
    groups = {issue.name: record.groups_of(issue)[rows] for issue in record.looked_for if issue.group_column}
    truth = None if record.truth is None else record.truth[rows]
    room = min(LONGEST_TEXT, ALL_TEXT // max(len(rows), 1))
    found = {}
    for i, row in enumerate(rows.tolist()):
        text = texts[row]
        key = _line(text.key)
        captions, cut = _fitted(text, room)
        found[row] = Example(
            row=row,
            key=key[:LONGEST_KEY],
            whole_key=len(text.key) <= LONGEST_KEY and key == text.key,
            captions=captions,
            cut=cut,
            more=max(len(text.captions) - MOST_CAPTIONS, 0),
            problem=_line(text.problem)[:LONGEST_KEY],
            action=_line(text.action)[:LONGEST_KEY],
            p_noise=_rounded(p_noise[i]),
            numbers={name: _rounded(values[i]) for name, values in numbers.items() if name != "p_noise"},
            scores={name: _rounded(values[i]) for name, values in scores.items()},
            flags=[name for name, values in flags.items() if values[i]],
            groups={name: int(values[i]) for name, values in groups.items() if values[i] >= 0},
            truth=None if truth is None else bool(truth[i]),
            stratum=stratum.get(row, -1),
        )
    return found


def pictures(table: PairTable, rows: list[int], room: int) -> dict[int, Picture]:
    """A small picture of each row, all together within about `room` bytes of the page.

    What a picture may take is what its predecessors left; one that is too large becomes rougher, then smaller.
    """
    found: dict[int, Picture] = {}
    for done, row in enumerate(rows):
        share = room // (len(rows) - done)
        found[row] = _within(picture(table, row), 3 * share if share > 3000 else share)
        room = max(room - len(found[row].uri), 0)
    return found


def embedded_json(value: Any) -> Markup:
    """JSON to stand in a <script type="application/json">: no character of it can end the element or a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text))


def _within(whole: Picture, share: int) -> Picture:
    """The picture in at most `share` bytes of its data URI; as small as it gets, if that is not enough."""
    if len(whole.uri) <= share:
        return whole
    pixels = Image.open(io.BytesIO(base64.b64decode(whole.uri.partition(",")[2])))
    uri = whole.uri
    for side, quality in QUALITIES[1:]:
        file = io.BytesIO()
        small = pixels.resize((side, side)) if side < pixels.width else pixels
        small.save(file, "JPEG", quality=quality)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        if len(uri) <= share:
            break
    return Picture(uri, whole.width, whole.height, whole.problem)


def _fitted(text: Text, room: int) -> tuple[list[str], int]:
    """The captions, each on one line, cut together to `room` bytes of JSON; and how many characters that cost."""
    fitted, cut = [], 0
    for caption in text.captions[:MOST_CAPTIONS]:
        line = _line(caption[: 2 * LONGEST_TEXT])
        short = line[: max(room, 20)]
        while len(short) > 20 and _size(short) > room:
            short = short[: max(len(short) * 3 // 4, 20)]
        room -= _size(short)
        missing = len(line) - len(short) + max(len(caption) - 2 * LONGEST_TEXT, 0)
        cut += missing
        fitted.append(short.rstrip() + "…" if missing else short)
    return fitted, cut


def _size(text: str) -> int:
    return len(embedded_json(text).encode("utf-8", "replace"))


def _line(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _union(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
