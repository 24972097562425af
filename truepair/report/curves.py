"""The figures of a run page that follow training: losses, settings, evaluations, the noise model by epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from truepair.methods import METHODS
from truepair.report import charts
from truepair.report.charts import Line, Mark
from truepair.report.record import RunRecord

LOGGED = {  # figure of a method: its title, what it says to a newcomer
    "weight": ("Mean weight of a pair", "How much an average pair of a batch counts: 1 is full belief in every pair."),
    "itc": ("Contrastive loss (ITC)", "Image and text against all others, from the towers' embeddings alone."),
    "itm": ("Matching loss (ITM)", "The fusion encoder tells given pairs from pairs mixed up on purpose."),
    "mlm": ("Word-filling loss (MLM)", "The fusion encoder guesses hidden words from the others and the image."),
    "itm_accuracy": (
        "Matching accuracy",
        "Share of given and mixed-up pairs that the fusion encoder tells right. Two thirds are mixed up: 0.67 is "
        "what an encoder gets that has not learnt to match.",
    ),
    "mlm_accuracy": ("Word-filling accuracy", "Share of hidden words that the fusion encoder guesses."),
    "noisy": ("Share called noisy", "Pairs of a batch that the method treated as mismatched."),
    "ratio": ("Ratio of the split", "Share of a batch from which pairs may be called noisy, as planned."),
}


@dataclass(frozen=True)
class Figure:
    """A chart with the words around it.

    chart: an SVG element, already safe. title, text: plain. key: (CSS classes of a swatch, what it stands for).
    """

    title: str
    chart: str
    text: str
    key: tuple[tuple[str, str], ...] = ()


def _curves(records: Sequence[RunRecord], names: Sequence[str], figure: str) -> list[Line]:
    """One smoothed line a run that has the figure."""
    return [
        charts.smoothed(Line(name, record.steps["epoch"], record.steps[figure], number))
        for number, (record, name) in enumerate(zip(records, names, strict=True))
        if figure in record.steps and np.isfinite(record.steps[figure]).any()
    ]


def learning(records: Sequence[RunRecord], names: Sequence[str]) -> list[Figure]:
    """Loss, scale, learning rate, what methods log, and evaluations where there are several."""
    figures = []
    if curves := _curves(records, names, "loss"):
        text = f"Each line is a running mean over a {charts.SMOOTHING}th of the run."
        if len({record.config.method for record in records}) > 1:
            text += " Methods weigh pairs differently, so compare a line's shape rather than its height with another's."
        first = {record.fits[0].epoch for record in records if record.fits}
        upright = Mark(first.pop(), "first noise fit") if len(first) == 1 else None
        chance = _chance(records)
        if chance:
            text += " The dashed line is the loss of a model that only guesses."
        chart = charts.lines(curves, "Training loss over epochs", across=chance, upright=upright)
        figures.append(Figure("Training loss", chart, text))
    evaluations = (
        ("top1", "Zero-shot top-1, %", "Test pictures whose right class the model names first."),
        ("image_to_text_r1", "Retrieval R@1, image to text, %", "Test pictures whose own caption is found first."),
    )
    for name, title, text in evaluations:
        if curves := [line for line in _evaluations(records, names, name) if len(line.x) > 1]:
            figures.append(Figure(title, charts.lines(curves, f"{title} over epochs", low=0, dots=True), text))
    logged = {name: "Logged by the method." for record in records for name in record.method_logs}
    logged |= {name: text for name, (_, text) in LOGGED.items() if name in logged}
    smaller = {
        "scale": "One over the temperature. It grows as the model becomes sure.",
        "lr": "The size of the optimiser's steps, as planned.",
        "samples_per_s": "Pairs trained on in a second, evaluations and saving left out.",
        "data_wait": "Share of the time that training waited for images: above a tenth, more --workers help.",
        **logged,
    }
    titles = {"scale": "Logit scale", "lr": "Learning rate", "samples_per_s": "Throughput, samples/s"}
    titles |= {"data_wait": "Waiting for data"} | {name: title for name, (title, _) in LOGGED.items()}
    for name, text in smaller.items():
        if curves := _curves(records, names, name):
            title = titles.get(name, name)
            figures.append(Figure(title, charts.lines(curves, f"{title} over epochs", low=0), text))
    return figures


def _chance(records: Sequence[RunRecord]) -> Mark | None:
    """The loss of guessing, if it is the same for all runs."""
    levels = set()
    for config in (record.config for record in records):
        if config.method not in METHODS:
            return None
        kind = METHODS[config.method]
        levels.add(kind(kind.Options(**config.options)).chance_loss(config.batch_size, config.pairs.captions))
    level = levels.pop()
    return None if levels or level is None else Mark(level, f"guessing, {level:.2f}")


def _evaluations(records: Sequence[RunRecord], names: Sequence[str], figure: str) -> list[Line]:
    """One line a run over its evaluations, in percent."""
    return [
        Line(
            name,
            np.array([entry["epoch"] for entry in record.evals if figure in entry]),
            np.array([100 * entry[figure] for entry in record.evals if figure in entry]),
            number,
        )
        for number, (record, name) in enumerate(zip(records, names, strict=True))
    ]


FITTED, OPINED, CALLED = (
    ("solid", "p_noise, from the losses"),
    ("dashes", "1−c, the method's own"),
    ("dashes", "called noisy"),
)


def detection(records: Sequence[RunRecord], names: Sequence[str]) -> list[Figure]:
    """The opinions of the pairs over epochs, the noise model's and methods' own: how they rank, how many they doubt."""
    figures = []
    fitted = any(record.fits for record in records)
    opined = any(record.splits for record in records)
    key = (FITTED,) * bool(opined and fitted)
    ranked = _opinions(records, names, [[fit.auroc for fit in record.fits] for record in records])
    ranked += _opinions(records, names, [[split.auroc for split in record.splits] for record in records], second=True)
    if any(np.isfinite(line.y).any() for line in ranked):
        text = (
            "AUROC: the chance that a mismatched pair is doubted more than a matched one. ½ is guessing, 1 is perfect."
        )
        guessing = Mark(0.5, "guessing")
        chart = charts.lines(ranked, "AUROC over epochs", across=guessing, low=0.4, high=1, dots=True)
        figures.append(Figure("Are the right pairs doubted?", chart, text, (*key, OPINED) if opined else ()))
    doubted = _opinions(records, names, [[100 * fit.mean_p_noise for fit in record.fits] for record in records])
    called = [[100 * split.noisy_share for split in record.splits] for record in records]
    doubted += _opinions(records, names, called, second=True)
    rates = {record.known_rate for record in records if record.known_rate is not None}
    if doubted:
        truth = Mark(100 * rates.pop(), "") if len(rates) == 1 else None
        chart = charts.lines(doubted, "Doubted share over epochs", across=truth, low=0, dots=True)
        said = ["The mean of p_noise: the share of all pairs that the noise model takes for mismatched."] * fitted
        if opined:
            said.append("Called noisy: the share that the method treated as mismatched when it last saw them.")
        if truth:
            said.append(f"{'Level' if opined else 'Dashed'}: the share that really is, {truth.value:.0f} %.")
        text = " ".join(said)
        figures.append(Figure("How many are doubted, %", chart, text, (*key, CALLED) if opined else ()))
    return figures


def _opinions(
    records: Sequence[RunRecord], names: Sequence[str], values: Sequence[Sequence[float]], *, second: bool = False
) -> list[Line]:
    """One line over epochs for each run with values: those of its noise fits, or (`second`) of the method's splits.

    A run's name stands once in a chart: at the end of its noise model's line, if it has one.
    """
    lines = []
    for number, (record, name, figures) in enumerate(zip(records, names, values, strict=True)):
        known = record.splits if second else record.fits
        if known:
            label = "" if second and record.fits else name
            lines.append(Line(label, np.array([k.epoch for k in known]), np.array(figures), number, second))
    return lines
