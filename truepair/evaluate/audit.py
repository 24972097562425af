"""The audit of a pair table: what a model thinks of every pair, as a Parquet file a row a pair."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from truepair.evaluate.agreement import Agreement, agreement
from truepair.evaluate.features import Encoder, Progress, reasons, towers_of
from truepair.evaluate.noise import PairScores, detection_figures, itm_figures, score_pairs
from truepair.models.matcher import Matcher
from truepair.noise import DetectionFigures
from truepair.noise.scores import NEGATIVES
from truepair.noise.tables import TRUTH
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PairTable

FILE = "audit.parquet"


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    scores: of every row. file: the audit.parquet that holds them.
    n: rows that could be scored. expected_noise: the sum of their p_noise.
    figures: against the table's column is_noise; None if it has none. skipped: reason -> number of rows not scored.
    itm_figures: those of 1 - itm. agreement: of p_noise ("first") and 1 - itm ("second"). None without fusion encoder.
    """

    scores: PairScores
    file: Path
    n: int
    expected_noise: float
    figures: DetectionFigures | None
    dataset: str
    model: str
    skipped: dict[str, int]
    itm_figures: DetectionFigures | None = None
    agreement: Agreement | None = None

    def worst(self, count: int) -> list[int]:
        """Rows of the `count` worst matching pairs, the worst first; rows without a score are not among them."""
        order = np.argsort(self.scores.neg_clip_loss, kind="stable")[: min(count, self.n)]  # NaN sorts last
        return [int(row) for row in order]

    def to_json(self) -> dict[str, Any]:
        """Counts, the fitted mixture and the figures, ready for `json.dumps`."""
        judged = {} if self.agreement is None else {"itm": self._itm_json(self.agreement)}
        return {
            "dataset": self.dataset,
            "model": self.model,
            "task": "audit",
            "file": str(self.file),
            "n": self.n,
            "expected_noise": self.expected_noise,
            "mixture": self.scores.mixture.to_dict(),
            "figures": None if self.figures is None else asdict(self.figures),
            "skipped": self.skipped,
            **judged,
        }

    def _itm_json(self, agreed: Agreement) -> dict[str, Any]:
        return {
            "figures": None if self.itm_figures is None else asdict(self.itm_figures),
            "rank_correlation": agreed.rank_correlation,
            "doubted_by_both": agreed.both,
            "doubted_by_p_noise_alone": agreed.first,
            "doubted_by_itm_alone": agreed.second,
            "doubted_by_neither": agreed.neither,
        }


def audit(
    model: Encoder | Matcher,
    table: PairTable,
    out: str | Path,
    *,
    scale: float | None = None,
    negatives: int = NEGATIVES,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Score every row of `table` (see `score_pairs`) and write `out`/audit.parquet, whole or not at all.

    Columns: row, key, cosine, neg_clip_loss, p_noise (null where `problem` names why the row has none), itm (likewise,
    if the model is a `Matcher`), problem, caption (the list in force), and is_noise if the table has it. The table
    itself is not changed.
    """
    scores = score_pairs(
        model,
        table,
        scale=scale,
        negatives=negatives,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    seen = ~np.isnan(scores.neg_clip_loss)
    truth = table.numbers(TRUTH) if TRUTH in table.column_names else None
    problem = np.full(len(table), "", object)
    for row, reason in scores.skipped:
        problem[row] = reason
    columns: dict[str, Any] = {
        "row": np.arange(len(table)),
        "key": _stored(table, "key"),
        "cosine": pa.array(scores.cosine, mask=~seen),
        "neg_clip_loss": pa.array(scores.neg_clip_loss, mask=~seen),
        "p_noise": pa.array(scores.p_noise, mask=~seen),
        **({} if scores.itm is None else {"itm": pa.array(scores.itm, mask=~seen)}),
        "problem": problem,
        "caption": _stored(table, table.caption_column),
    }
    file = Path(out) / FILE
    write_parquet(file, columns if truth is None else columns | {TRUTH: np.asarray(truth)})
    return AuditResult(
        scores=scores,
        file=file,
        n=int(seen.sum()),
        expected_noise=float(scores.p_noise[seen].sum(dtype=np.float64)),
        figures=None if truth is None else detection_figures(scores, truth),
        dataset=table.path.name,
        model=towers_of(model).name,
        skipped=reasons(scores.skipped),
        itm_figures=None if truth is None else itm_figures(scores, truth),
        agreement=None if scores.itm is None else agreement(scores.p_noise, 1 - scores.itm),
    )


def _stored(table: PairTable, name: str) -> pa.ChunkedArray:
    return pq.read_table(table.parquet(name), columns=[name], memory_map=True).column(0)
