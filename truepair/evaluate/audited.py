"""What an audit leaves: its result, the columns of audit.parquet, the object of audit.json."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from truepair import __version__
from truepair.evaluate import keeping, tallies
from truepair.evaluate.agreement import Agreement
from truepair.evaluate.keeping import Judged
from truepair.evaluate.labelled import Calibrated, to_label
from truepair.evaluate.noise import PairScores
from truepair.evaluate.remembered import problems
from truepair.noise import DetectionFigures
from truepair.noise.tables import TRUTH
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    scores: of every row. judged: the issues, in order, with what was found of each. kept: rows to keep, ascending.
    against: of each second table whose images were compared, how many and which could not be (`Compared.to_json`).
    record: what audit.json holds. file: audit.parquet; files: all that was written.
    n: rows. scored: those that could be scored. expected_noise: the sum of their p_noise.
    figures: against the table's column is_noise; None if it has none. skipped: reason -> number of rows not scored.
    itm_figures: those of 1 - itm. agreement: of p_noise ("first") and 1 - itm ("second"). None without fusion encoder.
    recalibrated: (n,) float32, p_noise made right by labels; None without. remembered: the scores are those of the last
        audit in the same folder.
    """

    scores: PairScores
    judged: tuple[Judged, ...]
    against: list[dict[str, Any]]
    kept: npt.NDArray[np.int64]
    record: dict[str, Any]
    file: Path
    files: tuple[Path, ...]
    n: int
    scored: int
    expected_noise: float
    figures: DetectionFigures | None
    dataset: str
    model: str
    skipped: dict[str, int]
    itm_figures: DetectionFigures | None = None
    agreement: Agreement | None = None
    recalibrated: npt.NDArray[np.float32] | None = None
    remembered: bool = False

    @property
    def p_noise(self) -> npt.NDArray[np.float32]:
        """(n,) the p_noise in force: made right by labels, if there are any."""
        return self.scores.p_noise if self.recalibrated is None else self.recalibrated

    def worst(self, count: int) -> list[int]:
        """Rows of the `count` worst matching pairs, the worst first; rows without a score are not among them."""
        order = np.argsort(self.scores.neg_clip_loss, kind="stable")[: min(count, self.scored)]  # NaN sorts last
        return [int(row) for row in order]

    def to_json(self) -> dict[str, Any]:
        """What audit.json holds, but for the curves and samples that a page draws; ready for `json.dumps`."""
        drawn = ("loss", "p_noise", "reliability", "sources", "to_label")
        short = {name: value for name, value in self.record.items() if name not in drawn}
        files = [str(file) for file in self.files]
        return {**short, "task": "audit", "file": str(self.file), "files": files, "kept": len(self.kept)}


def columns(
    result: AuditResult,
    table: PairTable,
    truth: npt.NDArray[Any] | None,
    made_right: Calibrated | None,
    grave: npt.NDArray[np.int8],
) -> dict[str, Any]:
    """audit.parquet's, in order."""
    scores = result.scores
    columns: dict[str, Any] = {
        "row": np.arange(len(table)),
        "key": _stored(table, "key"),
        "caption": _stored(table, table.caption_column),
        **{name: _known(getattr(scores, name)) for name in ("cosine", "neg_clip_loss", "p_noise")},
        **({} if scores.itm is None else {"itm": pa.array(scores.itm, mask=np.isnan(scores.neg_clip_loss))}),
        "problem": problems(scores, len(table)),
        **({} if truth is None else {TRUTH: truth.astype(bool)}),
        **({} if made_right is None else {"p_noise_recalibrated": _known(made_right.p_noise)}),
    }
    for one in result.judged:
        if one.found is not None:
            columns[one.issue.name] = _known(one.found.score)
            columns[f"{one.issue.name}_flag"] = one.flag
            if one.found.group is not None:
                columns[f"{one.issue.name}_group"] = pa.array(one.found.group, mask=one.found.group < 0)
    return columns | {"action": keeping.action_names(grave)}


def _known(values: npt.NDArray[np.float32]) -> pa.Array:
    """NaN as null."""
    return pa.array(values, mask=np.isnan(values))


def record(
    result: AuditResult,
    table: PairTable,
    settings: dict[str, Any],
    truth: npt.NDArray[Any] | None,
    made_right: Calibrated | None,
    grave: npt.NDArray[np.int8],
) -> dict[str, Any]:
    """audit.json's object."""
    scores = result.scores
    itm = {} if result.agreement is None else {"itm": _itm_json(result.itm_figures, result.agreement)}
    found = {
        "truepair": __version__,
        "dataset": result.dataset,
        "table": str(table.path),
        "model": result.model,
        "settings": settings,
        "n": result.n,
        "scored": result.scored,
        "expected_noise": result.expected_noise,
        "skipped": result.skipped,
        "mixture": scores.mixture.to_dict(),
        "figures": None if result.figures is None else asdict(result.figures),
        **itm,
        "truth": truth is not None,
        "issues": [_issue_json(one) for one in result.judged],
        "against": result.against,
        "loss": tallies.losses(-scores.neg_clip_loss, truth),
        "p_noise": tallies.probabilities(scores.p_noise),
        "reliability": tallies.reliable(result.p_noise, truth),
        "sources": tallies.sources(table, result.p_noise),
        "actions": keeping.counts(grave),
        "to_label": tallies.sample(scores.p_noise, *to_label(scores.p_noise)),
        "calibration": None if made_right is None else made_right.told,
    }
    plain: dict[str, Any] = tallies.plain(found)
    return plain


def _issue_json(one: Judged) -> dict[str, Any]:
    issue, found = one.issue, one.found
    return {
        "name": issue.name,
        "title": issue.title,
        "explanation": issue.explanation,
        "score_says": issue.score_says,
        "threshold": issue.threshold,
        "action": issue.action,
        "grouped": issue.grouped,
        "judged": 0 if found is None else int((~np.isnan(found.score)).sum()),
        "flagged": 0 if found is None else int(one.flag.sum()),
        "column": issue.name,
        "flag_column": f"{issue.name}_flag",
        "group_column": f"{issue.name}_group" if issue.grouped else None,
        "skipped": one.skipped or None,
    }


def _itm_json(figures: DetectionFigures | None, agreed: Agreement) -> dict[str, Any]:
    return {
        "figures": None if figures is None else asdict(figures),
        "rank_correlation": agreed.rank_correlation,
        "doubted_by_both": agreed.both,
        "doubted_by_p_noise_alone": agreed.first,
        "doubted_by_itm_alone": agreed.second,
        "doubted_by_neither": agreed.neither,
    }


def _stored(table: PairTable, name: str) -> pa.ChunkedArray:
    return pq.read_table(table.parquet(name), columns=[name], memory_map=True).column(0)
