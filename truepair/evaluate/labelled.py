"""What a few labels say of all pairs: how high p_noise should be, and how noisy the table is."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from truepair.errors import UserError
from truepair.noise.labels import Labels, read_labels
from truepair.noise.rate import draw_sample, noise_rate, sample_weight, strata
from truepair.noise.recalibration import gain, recalibrate
from truepair.pairs.table import PairTable

TO_LABEL = 200  # rows
POINTS = 101  # of the curve that is told
FEW = 50  # labels that tell a clean table from a bad one; fewer decide nothing (docs/calibration.md)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibrated:
    """p_noise: (n,) float32 made right by labels, NaN where there was none. told: what audit.json says of it."""

    p_noise: Floats
    told: dict[str, Any]


def to_label(p_noise: Floats) -> tuple[Integers, Integers]:
    """A stratified sample of rows to look at, TO_LABEL at most, and the stratum (n,) of every row; no chance in it."""
    stratum = strata(p_noise)
    return draw_sample(stratum, TO_LABEL, p_noise=p_noise), stratum


def labels_of(table: PairTable, path: Path) -> Labels:
    """The labels in a file, their keys compared with the table's. Raises UserError as `read_labels`."""
    keys = table.strings("key")
    return read_labels(path, len(table), lambda rows: [keys[int(row)] for row in rows])


def calibrated(p_noise: Floats, labels: Labels, *, random: bool = False) -> Calibrated:
    """Recalibrate p_noise (n,) by labels, each weighing as many pairs as its stratum has for a label.

    Labels of the sample to label count alone: chosen pairs stand for no others. With `random` somebody vouches that
    the labelled pairs are a uniform random sample of the table, and all of them count.
    Raises UserError if no pair that counts and has a p_noise is labelled keep or mismatch.
    """
    drawn, stratum = to_label(p_noise)
    if random:
        used = replace(labels, told=(*labels.told, "taken for a uniform random sample of the table (--labels-random)"))
    else:
        used = labels.among(drawn)
    scored, known = stratum[used.rows] >= 0, stratum[used.unsure] >= 0
    used = replace(used, rows=used.rows[scored], noisy=used.noisy[scored], unsure=used.unsure[known])
    if not len(used.rows):
        if random:
            raise UserError("no pair with a p_noise is labelled keep or mismatch; label some")
        raise UserError(
            f"no pair of the {len(drawn)} that this audit drew is labelled keep or mismatch; label some of its page's "
            "sample; if the labelled pairs are a uniform random sample of the table, say so with --labels-random"
        )
    weighed = p_noise[used.rows], used.noisy, sample_weight(stratum, used)
    if len(used.rows) < FEW:
        few = f"only {len(used.rows)} count: too few to choose a keep list by; label {FEW} at least, better 200"
        used = replace(used, told=(*used.told, few))
    curve, gained, rate = recalibrate(*weighed), gain(*weighed), noise_rate(stratum, used)
    points = np.linspace(0, 1, POINTS)
    told = {
        "kind": curve.kind,
        "labelled": len(used.rows),
        "unsure": len(used.unsure),
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "level": rate.level,
        "if_unsure_clean": rate.if_unsure_clean,
        "if_unsure_noisy": rate.if_unsure_noisy,
        "unlabelled": rate.unlabelled,
        "before_ece": gained.before_ece,
        "after_ece": gained.after_ece,
        "chance_ece": gained.chance_ece,
        "map": np.stack([points, curve(points)], axis=1).tolist(),
        "told": list(used.told),
    }
    return Calibrated(curve(p_noise), told)
