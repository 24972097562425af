"""How many pairs remain at every threshold of p_noise and every choice of flags to leave out, at any size of table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truepair.report.audit.record import MISMATCHED_PAIR, AuditRecord, Issue

STEPS = 1000
EDGES = (np.arange(STEPS + 1) / STEPS).astype(np.float32)  # thresholds to choose from, as exact as p_noise itself
BINS = STEPS + 2  # 0: not scored; b: p_noise in [EDGES[b - 1], EDGES[b]); STEPS + 1: p_noise is 1
CHUNK = 1 << 20


@dataclass(frozen=True)
class Ledger:
    """What a keep list leaves out, one reason after the other, each pair under the first that holds.

    unscored: without p_noise. over: p_noise at or above the threshold. flagged: (issue, pairs below the threshold that
    it flags and none before it leaves out, whether it leaves them out). remain: the keep list.
    expected, noisy: mismatched pairs by the sum of p_noise and by the truth (0 if it is not known), of all scored
    pairs, of those over the threshold and of those kept.
    """

    unscored: int
    over: int
    flagged: list[tuple[Issue, int, bool]]
    remain: int
    expected: float
    expected_over: float
    expected_kept: float
    noisy: int
    noisy_over: int
    noisy_kept: int


@dataclass(frozen=True)
class Tally:
    """Pairs counted by p_noise and by which of `issues` flag them.

    issues: those that flag pairs, the grouped ones last. Of a group all but the best match count as flagged: a keep
    list keeps that one. Which one is best is judged among the pairs without a flag of `left_out`; so with other choices
    the numbers are right but for those few groups whose best pair has another flag.
    counts, noisy: (2**k, BINS) int64, k = len(issues); bit i of the first index says that issues[i] flags the pair.
    noisy: of the really mismatched ones, None if the truth is not known. sums: of p_noise, (2**k, BINS).
    """

    issues: list[Issue]
    left_out: list[str]
    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    noisy: NDArray[np.int64] | None

    def to_json(self) -> list[dict[str, Any]]:
        """One object for each combination of flags that occurs, with parallel lists over the bins it has."""
        found = []
        for flags in np.flatnonzero(self.counts.any(1)).tolist():
            at = np.flatnonzero(self.counts[flags])
            entry = {"flags": flags, "bin": at.tolist(), "count": self.counts[flags, at].tolist()}
            entry["p"] = [round(value, 3) for value in self.sums[flags, at].tolist()]
            if self.noisy is not None:
                entry["noisy"] = self.noisy[flags, at].tolist()
            found.append(entry)
        return found

    def ledger(self, step: int) -> Ledger:
        """What a keep list of pairs with p_noise below EDGES[step] and without a flag of `left_out` leaves out."""
        low, high = slice(1, step + 1), slice(step + 1, None)
        kept = np.ones(len(self.counts), np.bool_)  # combinations of flags that nothing has left out so far
        flagged = []
        for bit, issue in enumerate(self.issues):
            has = (np.arange(len(kept)) >> bit & 1).astype(np.bool_)
            flagged.append((issue, int(self.counts[kept & has, low].sum()), issue.name in self.left_out))
            if issue.name in self.left_out:
                kept &= ~has
        none = np.zeros_like(self.counts) if self.noisy is None else self.noisy
        return Ledger(
            unscored=int(self.counts[:, 0].sum()),
            over=int(self.counts[:, high].sum()),
            flagged=flagged,
            remain=int(self.counts[kept, low].sum()),
            expected=float(self.sums.sum()),
            expected_over=float(self.sums[:, high].sum()),
            expected_kept=float(self.sums[kept, low].sum()),
            noisy=int(none[:, 1:].sum()),
            noisy_over=int(none[:, high].sum()),
            noisy_kept=int(none[kept, low].sum()),
        )

    @property
    def by_p(self) -> NDArray[np.int64]:
        """(STEPS,) pairs by p_noise, those at 1 in the last bin."""
        counts: NDArray[np.int64] = self.counts.sum(0)[1:]
        return np.append(counts[: STEPS - 1], counts[STEPS - 1 :].sum())


def tally(record: AuditRecord, left_out: list[str]) -> Tally:
    """Count all pairs of an audit. left_out: issues whose flagged pairs are left out.

    Mismatched pairs are left out by the threshold and not by their flag, unless `left_out` says so.
    """
    wanted = [one for one in record.looked_for if one.flagged and (one.name != MISMATCHED_PAIR or one.name in left_out)]
    issues = sorted(wanted, key=lambda issue: bool(issue.group_column))
    shape = (1 << len(issues), BINS)
    size = shape[0] * BINS
    counts, noisy, sums = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
    flags = [record.flags_of(issue) for issue in issues]
    usable = ~np.isnan(record.p_noise)
    for issue, flag in zip(issues, flags, strict=True):
        if not issue.group_column and issue.name in left_out:
            usable &= ~flag
    for place, issue in enumerate(issues):
        if issue.group_column:
            flags[place] = flags[place] & ~best_of_groups(record.groups_of(issue), record.loss, usable)
    for start in range(0, record.n, CHUNK):
        part = slice(start, start + CHUNK)
        p = record.p_noise[part]
        cell = np.where(np.isnan(p), 0, np.searchsorted(EDGES, p, side="right"))
        for bit, flag in enumerate(flags):
            cell += (flag[part].astype(np.int64) << bit) * BINS
        counts += np.bincount(cell, minlength=size)
        sums += np.bincount(cell, np.nan_to_num(p.astype(np.float64)), minlength=size)
        if record.truth is not None:
            noisy += np.bincount(cell[record.truth[part]], minlength=size)
    known = None if record.truth is None else noisy.reshape(shape)
    return Tally(issues, left_out, counts.reshape(shape), sums.reshape(shape), known)


def best_of_groups(group: NDArray[np.int64], loss: NDArray[np.float32], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) the usable row of least loss in each group (-1: none), the first of equals.

    p_noise never falls with the loss, so a threshold that leaves out this row leaves out its whole group.
    """
    rows = np.flatnonzero(usable & (group >= 0))
    order = rows[np.lexsort((loss[rows], group[rows]))]
    best = np.zeros(len(group), np.bool_)
    best[order[np.flatnonzero(np.diff(group[order], prepend=-1))]] = True
    return best
