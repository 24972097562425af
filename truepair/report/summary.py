"""The head of a run page: what was trained, the key figures run by run, what their names mean, how the runs differ."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truepair.config import RunConfig
from truepair.report.record import RunRecord


@dataclass(frozen=True)
class Row:
    """A run in the table of key figures; `cells` are (text, is the best of its column)."""

    label: str
    colour: int
    cells: list[tuple[str, bool]]


def lead(records: Sequence[RunRecord]) -> str:
    """One sentence on what was trained on what."""
    data = dict.fromkeys(Path(record.config.data).name for record in records)
    many = "Each run" if len(records) > 1 else "This run"
    where = f"{many} trained on the pair table {' or '.join(data)}"
    pairs = [len(record.losses.rows) for record in records if record.losses is not None]
    if len(set(pairs)) > 1:
        where += f" (not on the same pairs: {', '.join(f'{count:,}' for count in pairs)})"
    rates = {
        float(record.losses.truth.mean()) for record in records if record.losses and record.losses.truth is not None
    }
    if len(rates) == 1:
        return f"{where}, in which {100 * rates.pop():.0f} % of the pairs are known to be mismatched."
    return f"{where}. Which of its pairs are mismatched is not known." if not rates else f"{where}."


@dataclass(frozen=True)
class KeyFigure:
    """A column of the table: the value times `factor`, to so many decimals; `meaning` is for a newcomer."""

    heading: str
    name: str
    decimals: int
    factor: int
    more_is_better: bool
    meaning: str


_FIGURES = (
    KeyFigure("top-1 %", "top1", 1, 100, True, "test pictures whose right class is the model's first guess"),
    KeyFigure("top-5 %", "top5", 1, 100, True, "test pictures whose right class is among its first five"),
    KeyFigure(
        "R@1 image→text %", "image_to_text_r1", 1, 100, True, "test pictures for which their own caption is found first"
    ),
    KeyFigure(
        "R@1 text→image %", "text_to_image_r1", 1, 100, True, "test captions for which their own picture is found first"
    ),
    KeyFigure(
        "AUROC",
        "auroc",
        3,
        1,
        True,
        "chance that a mismatched pair is doubted more than a matched one: 0.5 is guessing, 1 is perfect",
    ),
    KeyFigure(
        "AUROC of 1−c",
        "confidence_auroc",
        3,
        1,
        True,
        "the same of the method's own opinion of a pair (c: its confidence) instead of the noise model's",
    ),
    KeyFigure("doubted %", "mean_p_noise", 1, 100, False, "share of the pairs the noise model takes for mismatched"),
    KeyFigure("called noisy %", "noisy_share", 1, 100, False, "share of the pairs the method treated as mismatched"),
    KeyFigure("samples/s", "samples_per_s", 0, 1, True, "pairs trained on in a second, median over the run"),
)


def _key_figures(record: RunRecord) -> dict[str, float]:
    speeds = record.steps.get("samples_per_s", np.zeros(0))
    speeds = speeds[np.isfinite(speeds)]
    last = record.fits[-1] if record.fits else None
    split = record.splits[-1] if record.splits else None
    return {
        **{name: record.latest(name) for name in ("top1", "top5", "image_to_text_r1", "text_to_image_r1")},
        "auroc": last.auroc if last else math.nan,
        "confidence_auroc": split.auroc if split else math.nan,
        "mean_p_noise": last.mean_p_noise if last else math.nan,
        "noisy_share": split.noisy_share if split else math.nan,
        "samples_per_s": float(np.median(speeds)) if len(speeds) else math.nan,
    }


def _shown(found: Sequence[dict[str, float]]) -> list[KeyFigure]:
    """The figures that at least one run has."""
    return [figure for figure in _FIGURES if any(math.isfinite(values[figure.name]) for values in found)]


def headings(records: Sequence[RunRecord]) -> list[str]:
    """Headings of the cells of `rows`."""
    return ["epochs", *(figure.heading for figure in _shown([_key_figures(record) for record in records]))]


def glossary(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """(heading, what it means) of the figures in the table."""
    return [(figure.heading, figure.meaning) for figure in _shown([_key_figures(record) for record in records])]


def rows(records: Sequence[RunRecord], names: Sequence[str]) -> list[Row]:
    """The key figures of every run, the best of each column marked where several have it."""
    found = [_key_figures(record) for record in records]
    shown = _shown(found)
    table = []
    for number, (record, name, values) in enumerate(zip(records, names, found, strict=True)):
        done = record.steps["epoch"][-1] if len(record.steps["epoch"]) else 0.0
        cells = [(f"{done:.3g} of {record.config.epochs}", False)]
        for figure in shown:
            value = values[figure.name]
            rivals = [other[figure.name] for other in found if math.isfinite(other[figure.name])]
            best = figure.more_is_better and len(rivals) > 1 and value == max(rivals)
            cells.append((f"{figure.factor * value:,.{figure.decimals}f}" if math.isfinite(value) else "–", best))
        table.append(Row(name, number, cells))
    return table


def differences(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """(entry, its value in each run) of the configuration entries in which the runs differ, the directory aside."""
    entries = [_flat(record.config) for record in records]
    names = dict.fromkeys(name for values in entries for name in values)
    rows = [(name, [str(values.get(name, "–")) for values in entries]) for name in names if name != "out"]
    return [row for row in rows if len(set(row[1])) > 1]


def _flat(config: RunConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat
