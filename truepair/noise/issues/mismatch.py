"""Mismatched pairs: captions about something else."""

import numpy as np

from truepair.noise.issues.base import Evidence, Floats, Found, Issue
from truepair.noise.mixture import Mixture, fit_losses

SURE = 1e-6  # ITM's probabilities are taken no nearer to 0 and 1: float32 is no finer there


def find(evidence: Evidence, threshold: float) -> Found:
    """p_noise recalibrated by labels; else the mean of p_noise and of what ITM's verdicts give, where there are any."""
    if evidence.recalibrated is not None:
        return Found(evidence.recalibrated)
    opinions = [] if evidence.no_noise_model else [evidence.p_noise]
    if evidence.itm is not None and not (fitted := _fit(evidence.itm)).degenerate:
        losses = _log_odds(evidence.itm)
        opinions.append(np.where(np.isnan(losses), np.nan, fitted.posterior(losses)).astype(np.float32))
    return Found(np.mean(np.stack(opinions), axis=0, dtype=np.float32))


def lacks(evidence: Evidence) -> str:
    if evidence.recalibrated is not None or not evidence.no_noise_model:
        return ""
    if evidence.itm is not None and not _fit(evidence.itm).degenerate:
        return ""
    return f"the losses do not fall into matched and mismatched: {evidence.no_noise_model}"


def _log_odds(itm: Floats) -> Floats:
    """(n,) log P(mismatch)/P(match), NaN where there is no verdict: it plays the part of a loss."""
    match = np.clip(itm, SURE, 1 - SURE)
    return np.log1p(-match) - np.log(match)


def _fit(itm: Floats) -> Mixture:
    return fit_losses(_log_odds(itm))


mismatched_pair = Issue(
    name="mismatched_pair",
    title="Mismatched pairs",
    explanation=(
        "The caption is probably not about the image. Each pair's loss, negCLIPLoss (arXiv 2405.19547), compares it "
        "with 4,096 others, so captions and images that fit everything are not taken for good matches as a raw "
        "cosine would; two normal distributions are fitted to all losses, and the score is the probability of the "
        "higher one. Where the model has a fusion encoder, its verdicts (image-text matching) are split in two in "
        "the same way, and the score is the mean of both: a pair is flagged if the two together make it more likely "
        "mismatched than not. The fit splits losses in two even where every pair matches, and what the model cannot "
        "see it cannot doubt: look at the worst and at the borderline before dropping anything. Labels turn the "
        "score into a probability that was measured: it is then the recalibrated one, of the loss alone. The "
        "threshold of ½, more likely mismatched than not, is ours."
    ),
    score_says="probability that the caption is not about the image",
    threshold=0.5,
    action="drop",
    find=find,
    lacks=lacks,
)
