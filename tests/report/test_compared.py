"""The page shows how the noise model moved, which pairs changed their side, and what single pictures find."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from truepair.cli import main
from truepair.evaluate.examples import Retrieved, write_retrieved
from truepair.noise import fit_losses
from truepair.pairs.columns import write_parquet
from truepair.pairs.table import PairTable
from truepair.report import run_report
from truepair.report.changed import changed
from truepair.report.found import SHOWN, searches
from truepair.report.multiples import mixtures
from truepair.report.record import read_run
from truepair.report.summary import lead


@pytest.fixture
def moved(make_run: Callable[..., Path]) -> Path:
    """A run with a second fit, after epoch 2, that held pair 0 for matched and pair 1 for mismatched."""
    folder = make_run("moved")
    kept = pq.read_table(folder / "columns" / "epoch-0004.parquet").to_pydict()
    losses, p_noise = np.array(kept["loss"]), np.array(kept["p_noise"])
    p_noise[[0, 1]] = 0.1, 0.9
    write_parquet(
        folder / "columns" / "epoch-0002.parquet",
        {"row": np.array(kept["row"]), "loss": losses, "p_noise": p_noise},
    )
    line = {"kind": "noise", "step": 20, "epoch": 2, "mixture": fit_losses(losses).to_dict(), "mean_p_noise": 0.3}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    place = next(number for number, text in enumerate(lines) if json.loads(text)["step"] > 20)
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:place], json.dumps(line), *lines[place:]]) + "\n")
    return folder


def test_pairs_that_changed_their_side_are_counted_and_shown_with_both_probabilities(moved: Path) -> None:
    found = changed(read_run(moved), "run")
    assert found is not None and "1 pairs came to be doubted and 1 to be believed" in found.figure.text
    (doubted, pairs), (believed, others) = found.groups
    assert doubted.startswith("Doubted only now: 1 ") and [pair.row for pair in pairs] == [0]
    assert believed.startswith("Doubted no longer: 1 ") and [pair.row for pair in others] == [1]
    assert pairs[0].was == pytest.approx(0.1) and pairs[0].p_noise > 0.5
    page = run_report([moved], moved / "report.html").read_text()
    assert f"p_noise 0.100 → {pairs[0].p_noise:.3f}" in page


def test_small_multiples_have_a_panel_for_each_fit_and_need_two(moved: Path, make_run: Callable[..., Path]) -> None:
    found = mixtures(read_run(moved), "run")
    assert found is not None and found.chart.count("epoch 2") == found.chart.count("epoch 4") == 1
    alone = read_run(make_run("alone"))
    assert mixtures(alone, "run") is None and changed(alone, "run") is None


def test_a_damaged_column_of_an_earlier_epoch_is_named_and_the_page_goes_without(moved: Path) -> None:
    (moved / "columns" / "epoch-0002.parquet").write_bytes(b"PAR1")
    page = run_report([moved], moved / "report.html").read_text()
    assert "The losses of epoch 2 are not shown" in page and "Which pairs changed" not in page


def searched(run: Path, table: Path, hits: set[int], rows: range = range(40)) -> None:
    captions = ("nearest <script>alert(1)</script>", "second")
    write_retrieved(
        run, table, [Retrieved(row, 1 if row in hits else 9, captions, (row in hits, False)) for row in rows]
    )


def test_pictures_on_which_runs_differ_come_first(make_run: Callable[..., Path], table: PairTable) -> None:
    one, two = make_run("one"), make_run("other", "gate")
    searched(one, table.path, set(range(20)))
    searched(two, table.path, set(range(2, 20)))
    found = searches([read_run(one), read_run(two)], ["clip", "gate"])
    assert found is not None and "20 with clip, 18 with gate" in found.summary and len(found.shown) == SHOWN
    assert {search.row for search in found.shown[:2]} == {0, 1}
    ranks = [[answer.rank for answer in search.answers] for search in found.shown[2:]]
    assert ranks.count([1, 1]) == ranks.count([9, 9]) == (SHOWN - 2) // 2
    page = run_report([one, two], one / "both.html").read_text()
    assert "<script>" not in page and "nearest &lt;script&gt;" in page


def test_a_run_that_never_finds_anything_is_shown_too(make_run: Callable[..., Path], table: PairTable) -> None:
    run = make_run()
    searched(run, table.path, set(), range(5))
    found = searches([read_run(run)], [""])
    assert found is not None and len(found.shown) == 5
    searched(run, table.path, set(), range(10**6, 10**6 + 3))
    assert searches([read_run(run)], [""]) is None


def test_a_lost_table_or_a_damaged_file_is_named(make_run: Callable[..., Path], table: PairTable) -> None:
    run = make_run()
    searched(run, table.path / "gone", {1})
    assert "Searches are not shown" in run_report([run], run / "report.html").read_text()
    (run / "retrieved.json").write_text("{")
    assert "Searches are not shown" in run_report([run], run / "report.html").read_text()


def test_the_command_writes_one_page_of_several_runs(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = str(make_run("one")), str(make_run("other", "gate"))
    for argv, told in (
        ([], "say which runs"),
        ([one, two], "--out compared.html"),
        ([one, "--worst", "-1"], "--worst -1"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["report", *argv])
        assert ended.value.code == 2 and told in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", one, two, "--out", str(tmp_path / "both.html"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "both.html")
    assert "clip, gate" in (tmp_path / "both.html").read_text()


def test_runs_on_other_pairs_are_told_apart_at_once() -> None:
    def record(rows: int) -> Any:
        losses = SimpleNamespace(rows=np.arange(rows), truth=None)
        return SimpleNamespace(config=SimpleNamespace(data="work/noisy"), losses=losses)

    assert "not on the same pairs" not in lead([record(600), record(600)])
    assert "the pair table noisy (not on the same pairs: 600, 1,380)." in lead([record(600), record(1380)])
