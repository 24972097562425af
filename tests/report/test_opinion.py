"""A method's own opinion of the pairs stands beside the noise model's, in figures that others compute alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from truepair.pairs.columns import write_parquet
from truepair.report import run_report
from truepair.report.opinion import opinion_figures
from truepair.report.record import PairLosses, PairOpinions, RunRecord, read_run

Make = Callable[..., Path]
COLUMNS = Path("columns") / "epoch-0004.parquet"


def known(run: Path) -> tuple[RunRecord, PairLosses, PairOpinions]:
    record = read_run(run)
    assert record.losses is not None and record.losses.opinion is not None and not record.notes
    return record, record.losses, record.losses.opinion


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """The text of the page on some runs, its words one space apart."""
    return lambda *runs: " ".join(run_report(runs, tmp_path / "page.html").read_text().split())


def test_splits_before_the_first_fit_are_read_without_complaint(make_run: Make) -> None:
    record, losses, _ = known(make_run(opinion=True))
    assert [split.epoch for split in record.splits] == [1, 2, 3, 4] and [fit.epoch for fit in record.fits] == [4]
    assert [split.noisy_share for split in record.splits] == [0.0625, 0.125, 0.1875, 0.25]
    assert np.isnan(record.splits[0].recall) and record.splits[1].recall == 0.4
    assert losses.fit == record.fits[0] and losses.opinion is not None and losses.opinion.split == record.splits[3]


def test_both_opinions_stand_in_the_table_and_in_one_chart_each(make_run: Make, page: Callable[..., str]) -> None:
    text = page(make_run("a", "nlip", opinion=True), make_run("b"))
    head = [f'<th scope="col">{name}</th>' for name in ("AUROC", "AUROC of 1−c", "doubted %", "called noisy %")]
    assert "".join(head) in text
    assert ">0.970</td><td>0.900</td><td>33.0</td><td>25.0</td>" in text
    assert ">0.970</td><td>–</td><td>33.0</td><td>–</td>" in text
    assert (
        text.count("p_noise, from the losses") == 2 and text.count("1−c, the method's own".replace("'", "&#39;")) == 1
    )
    assert text.count("has an opinion of its own") == 1


def test_a_run_without_an_opinion_says_nothing_of_one(make_run: Make, page: Callable[..., str]) -> None:
    text = page(make_run())
    assert [word for word in ("1−c", "alled noisy", "opinion of", "opinions", "confidence") if word in text] == []


def test_agreement_counts_the_pairs_that_both_one_or_none_doubt(make_run: Make) -> None:
    run = make_run(opinion=True)
    _, losses, opinion = known(run)
    columns = pq.read_table(run / COLUMNS).to_pylist()
    spoken = [pair for pair in columns if pair["confidence"] == pair["confidence"]]
    assert len(spoken) == len(columns) - 1
    both = sum(pair["p_noise"] >= 0.5 and pair["noisy"] for pair in spoken)
    model = sum(pair["p_noise"] >= 0.5 and not pair["noisy"] for pair in spoken)
    method = sum(pair["p_noise"] < 0.5 and pair["noisy"] for pair in spoken)
    text = opinion_figures(losses, opinion, "x")[0].text
    neither = len(spoken) - both - model - method
    assert min(both, model) > 0
    assert f"Both doubt {both} pairs, the noise model alone {model}, the method alone {method}; neither doubts" in text
    assert f"neither doubts {neither}. They say the same of {100 * (both + neither) / len(spoken):.0f} %." in text
    wanted = spearmanr([pair["loss"] for pair in spoken], [-pair["confidence"] for pair in spoken]).statistic
    assert f"Rank correlation of the loss and 1−c: {wanted:.2f}" in text


def test_how_often_pairs_were_called_noisy_is_told_with_and_without_the_truth(make_run: Make) -> None:
    run = make_run(opinion=True)
    _, losses, opinion = known(run)
    never = [pair["row"] for pair in pq.read_table(run / COLUMNS).to_pylist() if pair["times_noisy"] == 0]
    of_mismatched = sum(row % 3 == 0 for row in never)
    told = opinion_figures(losses, opinion, "x")[1]
    assert f"{len(never)} never were, and are left out: {of_mismatched} of the 20 mismatched and" in told.text
    assert f"and {len(never) - of_mismatched} of the 40 matched." in told.text
    untold = opinion_figures(replace(losses, truth=None), opinion, "x")[1]
    assert untold.key == (("bar unknown", "pairs"),) and "mismatched" not in untold.text
    quiet = replace(opinion, times=np.zeros_like(opinion.times))
    assert [figure.title for figure in opinion_figures(losses, quiet, "x")] == ["Do the two opinions agree?"]


def test_before_the_first_fit_the_methods_opinion_is_shown_alone(make_run: Make, page: Callable[..., str]) -> None:
    run = make_run("early", opinion=True, noise=False)
    columns = pq.read_table(run / COLUMNS).to_pydict()
    columns["loss"] = np.full(60, np.nan)  # as where losses are measured in a pass of their own
    write_parquet(run / COLUMNS, {name: np.array(values) for name, values in columns.items()})
    text = page(run)
    assert "No noise model has been fitted yet" in text and "How often was a pair called noisy?" in text
    assert "of 59 pairs" in text and "1 pairs had not" not in text
    assert [
        word for word in ("Do the two", "Losses of all pairs", "<span>p_noise", ">nan", " nan") if word in text
    ] == []
    order = np.argsort(np.array(columns["confidence"]))[:24]  # NaN last
    assert [int(word.split("<")[0]) for word in text.split("<span>row ")[1:]] == order.tolist()


def test_a_shown_pair_says_its_confidence_and_how_often_it_was_called_noisy(
    make_run: Make, page: Callable[..., str]
) -> None:
    run = make_run(opinion=True)
    text = page(run)
    for pair in pq.read_table(run / COLUMNS).to_pylist():
        if pair["row"] % 3 == 0 and pair["noisy"]:
            said = f"<span>c {pair['confidence']:.3f}</span> <span>called noisy {pair['times_noisy']}×</span>"
            assert f"{said} <span>row {pair['row']}</span>" in text


def test_columns_that_lack_what_the_metrics_promise_are_said_to(make_run: Make) -> None:
    run = make_run(opinion=True)
    columns = pq.read_table(run / COLUMNS, columns=["row", "loss", "p_noise"]).to_pydict()
    write_parquet(run / COLUMNS, {name: np.array(values) for name, values in columns.items()})
    record = read_run(run)
    assert record.losses is None and len(record.splits) == 4
    assert len(record.notes) == 1 and record.notes[0].startswith("The losses of epoch 4 are not shown: ")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("confidence", ["high"] * 60),
        ("confidence", pa.nulls(60)),
        ("times_noisy", pa.nulls(60)),
        ("times_noisy", pa.array([None, *range(59)], pa.int32())),
        ("times_noisy", np.full(60, 0.5)),
        ("noisy", pa.array([None] + [True] * 59)),
        ("noisy", ["yes"] * 60),
        ("row", np.arange(60) - 1),
        ("row", pa.nulls(60)),
        ("loss", ["much"] * 60),
    ],
)
def test_columns_of_another_type_are_said_to_be(make_run: Make, name: str, values: object) -> None:
    run = make_run(opinion=True)
    columns = pq.read_table(run / COLUMNS)
    place = columns.column_names.index(name)
    pq.write_table(columns.set_column(place, name, pa.array(values)), run / COLUMNS)
    record = read_run(run)
    assert record.losses is None and len(record.notes) == 1
    assert f"its column {name} holds other things" in record.notes[0]


def test_a_null_confidence_or_loss_is_one_that_is_not_known(make_run: Make) -> None:
    run = make_run(opinion=True)
    columns = pq.read_table(run / COLUMNS)
    for name in ("confidence", "loss"):
        place = columns.column_names.index(name)
        given = [None, *columns[name].to_pylist()[1:]]
        columns = columns.set_column(place, name, pa.array(given, pa.float32()))
    pq.write_table(columns, run / COLUMNS)
    losses = read_run(run).losses
    assert losses is not None and losses.unseen == 1 and losses.rows[0] == 1


def test_undefined_figures_of_a_split_leave_their_sentences_out(make_run: Make, page: Callable[..., str]) -> None:
    run = make_run(opinion=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {name: None for name in ("confidence_auroc", "noisy_precision", "noisy_recall") if name in line}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(run)
    assert "has an opinion of its own" in text and "believed less" not in text and "AUROC of 1−c" not in text
