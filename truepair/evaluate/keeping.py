"""From flags to what to do: an action a row, and the rows to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from truepair.noise.issues.base import ACTIONS, Found, Issue

Bools = npt.NDArray[np.bool_]
MISMATCH = "mismatched_pair"  # its part in what is kept is the threshold's


@dataclass(frozen=True)
class Judged:
    """An issue, and what was found of it in n rows; `skipped` says why it was not looked for, `found` is None then."""

    issue: Issue
    found: Found | None
    skipped: str = ""

    @property
    def flag(self) -> Bools:
        """(n,) rows that have it. Raises ValueError if it was not looked for."""
        if self.found is None:
            raise ValueError(f"{self.issue.name} was not looked for")
        flag: Bools = self.found.score >= np.float32(self.issue.threshold)
        return flag


def actions(n: int, judged: Sequence[Judged], unread: Sequence[int] = ()) -> npt.NDArray[np.int8]:
    """(n,) places in ACTIONS, of all flags of a row the gravest; 0, "keep", without a flag.

    unread: rows whose image file could not be read, so that nobody knows what is wrong with the image: "review".
    """
    grave = np.zeros(n, np.int8)
    grave[list(unread)] = ACTIONS.index("review")
    for one in judged:
        if one.found is not None:
            grave[one.flag] = np.maximum(grave[one.flag], ACTIONS.index(one.issue.action))
    return grave


def action_names(grave: npt.NDArray[np.int8]) -> pa.Array:
    """The strings of `actions`."""
    return pa.DictionaryArray.from_arrays(pa.array(grave), pa.array(ACTIONS)).cast(pa.string())


def default_drop(judged: Sequence[Judged]) -> tuple[str, ...]:
    """Issues whose rows are left out unless told otherwise: those to drop, without mismatched pairs.

    Those are left out by the threshold on p_noise, which could not be raised else.
    """
    named = [one.issue.name for one in judged if one.found is not None and one.issue.action == "drop"]
    return tuple(name for name in named if name != MISMATCH)


def kept_rows(
    p_noise: npt.NDArray[np.float32],
    match: npt.NDArray[np.float32],
    threshold: float,
    judged: Mapping[str, Judged],
    drop: Sequence[str],
) -> npt.NDArray[np.int64]:
    """Ascending rows whose p_noise is below `threshold` and that have no flag of the issues named by `drop`.

    Of an issue that puts rows together, the row of each group with the greatest `match` (n,) among those that pass
    everything else is kept, the first of equals. A row without p_noise is not kept.
    """
    kept: Bools = p_noise < threshold
    grouped = [judged[name] for name in drop if judged[name].issue.grouped]
    for name in drop:
        if not judged[name].issue.grouped:
            kept &= ~judged[name].flag
    for one in grouped:
        kept &= ~one.flag | _best_of_group(one, kept, match)
    return np.flatnonzero(kept)


def _best_of_group(one: Judged, kept: Bools, match: npt.NDArray[np.float32]) -> Bools:
    """(n,) one row of each group that has any `kept`."""
    assert one.found is not None and one.found.group is not None
    rows = np.flatnonzero(kept & (one.found.group >= 0))
    order = rows[np.lexsort((-match[rows], one.found.group[rows]))]
    best = np.zeros(len(kept), bool)
    best[order[np.unique(one.found.group[order], return_index=True)[1]]] = True
    return best


def counts(grave: npt.NDArray[np.int8]) -> dict[str, Any]:
    """How many rows have each action."""
    return dict(zip(ACTIONS, np.bincount(grave, minlength=len(ACTIONS)).tolist(), strict=True))
