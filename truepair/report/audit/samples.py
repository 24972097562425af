"""Chooses the pairs that the page shows of each issue: the worst, those at the threshold, and whole groups of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from truepair.report.audit.record import AuditRecord, Issue

Kind = Literal["worst", "borderline"]
Rows = NDArray[np.int64]

MEMBERS = 6  # of a group; more would hide the other groups
BORDER = 0.2  # scores at most so far from the threshold are borderline


@dataclass(frozen=True)
class Sample:
    """Pairs of an issue in the order to show them. group: the number that holds them together, -1 for none.

    size: pairs in the whole group, of which `rows` are the worst.
    """

    issue: str
    kind: Kind
    rows: Rows
    group: int = -1
    size: int = 0


def samples_of(record: AuditRecord, issue: Issue, count: int) -> list[Sample]:
    """At most `count` of the worst and as many borderline pairs of an issue; groups are kept together."""
    score, flag = record.scores_of(issue), record.flags_of(issue)
    if issue.group_column:
        group = record.groups_of(issue)
        return _grouped(issue, score, flag, group, count)
    worst = worst_rows(score, flag, record.loss, count)
    border = borderline_rows(score, flag, issue.threshold, count, worst)
    found = [Sample(issue.name, "worst", worst), Sample(issue.name, "borderline", border)]
    return [sample for sample in found if len(sample.rows)]


def worst_rows(score: NDArray[np.float32], flag: NDArray[np.bool_], loss: NDArray[np.float32], count: int) -> Rows:
    """The `count` flagged rows of highest score, the highest first; among equals those of higher loss, then the first.

    score, loss: (n,), NaN where not known. flag: (n,).
    """
    rows = np.flatnonzero(flag & ~np.isnan(score))
    if 0 < count < len(rows):
        least = np.partition(score[rows], -count)[-count]
        rows = rows[score[rows] >= least]
    order = np.lexsort((rows, -np.nan_to_num(loss[rows], nan=-np.inf), -score[rows]))
    return rows[order][:count]


def borderline_rows(
    score: NDArray[np.float32], flag: NDArray[np.bool_], threshold: float, count: int, without: Rows
) -> Rows:
    """Rows at most BORDER from the threshold, the nearest first: half of them flagged and half not, if there are."""
    distance = np.abs(score - np.float32(threshold))
    near = distance <= BORDER
    near[without] = False
    sides = [np.flatnonzero(near & side) for side in (flag, ~flag)]
    sides = [rows[np.lexsort((rows, distance[rows]))][:count] for rows in sides]
    room = [max(count // 2, count - len(sides[1])), max(count - count // 2, count - len(sides[0]))]
    rows = np.concatenate([side[:most] for side, most in zip(sides, room, strict=True)])
    return rows[np.lexsort((rows, distance[rows]))]


def _grouped(
    issue: Issue, score: NDArray[np.float32], flag: NDArray[np.bool_], group: Rows, count: int
) -> list[Sample]:
    """Groups with a flagged pair by their highest score, then groups near the threshold, each cut to MEMBERS."""
    members = np.flatnonzero((group >= 0) & ~np.isnan(score))
    if not len(members):
        return []
    members = members[np.lexsort((members, -score[members], group[members]))]  # a group's worst pair first
    starts = np.flatnonzero(np.diff(group[members], prepend=-1))
    sizes = np.diff(np.append(starts, len(members)))
    top = score[members[starts]]
    flagged = np.maximum.reduceat(flag[members], starts)
    by_score = np.lexsort((starts, -sizes, -top))
    worst = _fill(by_score[flagged[by_score]], sizes, count)
    left = np.setdiff1d(np.arange(len(starts)), worst)
    distance = np.abs(top[left] - np.float32(issue.threshold))
    by_distance = left[np.lexsort((left, distance))]
    border = _fill(by_distance[np.sort(distance) <= BORDER], sizes, count)
    kinds: list[tuple[Kind, Rows]] = [("worst", worst), ("borderline", border)]
    return [
        Sample(
            issue.name,
            kind,
            members[starts[place] : starts[place] + min(int(sizes[place]), MEMBERS)],
            int(group[members[starts[place]]]),
            int(sizes[place]),
        )
        for kind, places in kinds
        for place in places
    ]


def _fill(places: Rows, sizes: Rows, count: int) -> Rows:
    """The first of `places` whose groups, cut to MEMBERS, make at most `count` pairs together."""
    total = np.cumsum(np.minimum(sizes[places], MEMBERS))
    return places[total <= count]
