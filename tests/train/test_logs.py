"""metrics.jsonl: a line a figure, cut where a resumed run goes on; and the clock behind samples/s."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truepair.config import LogConfig
from truepair.train.logs import Clock, Pace, RunLog, cut


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_figures_become_lines_with_what_is_not_finite_as_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogConfig(), steps=5, start=0, speaks=True) as log:
        log.write("train", 1, loss=float("nan"), scale=2.5)
        log.write("noise", 1, reason="none", auroc=float("inf"))
    assert lines(tmp_path / "metrics.jsonl") == [
        {"kind": "train", "step": 1, "loss": None, "scale": 2.5},
        {"kind": "noise", "step": 1, "reason": "none", "auroc": None},
    ]


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, LogConfig(), steps=5, start=0, speaks=False) as log:
        log.write("train", 1, loss=1.0)
        log.say("hello")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 30), max_size=20), start=st.integers(0, 30), torn=st.integers(0, 60))
def test_a_resumed_run_keeps_the_lines_of_the_steps_it_stands_on(
    tmp_path: Path, steps: list[int], start: int, torn: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    last = json.dumps({"kind": "train", "step": 31, "loss": 0.123456789})[:torn]
    path.write_text("".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in sorted(steps)) + last)
    cut(path, start)
    assert [line["step"] for line in lines(path)] == [step for step in sorted(steps) if step <= start]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_where_there_is_no_terminal_a_line_a_minute_says_how_far_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with RunLog(tmp_path, LogConfig(), steps=2_000, start=500, speaks=True) as log:
        for step in range(510, 650, 10):
            now[0] += 15
            log.advance(step, "epoch 2/4", 1.5, 340.4, 0.01)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2/4: step 540 of 2,000 · loss 1.500 · 340 samples/s · 1% data wait · 0:36:30 left",  # 40 steps in 60 s
        "epoch 2/4: step 580 of 2,000 · loss 1.500 · 340 samples/s · 1% data wait · 0:35:30 left",
        "epoch 2/4: step 620 of 2,000 · loss 1.500 · 340 samples/s · 1% data wait · 0:34:30 left",
    ]


def test_cutting_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    cut(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_the_pace_is_said_now_and_then_without_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = Pace(said.append, 10_000, seconds=60)
    for seconds, count in ((0, 4_000), (50, 500), (20, 200), (30, 0), (60, 0), (40, 5_300)):
        now[0] += seconds
        pace(count)
    assert said == [
        "4,700 of 10,000 pairs · 10 pairs/s · 0:08:50 left",  # 700 in 70 s
        "4,700 of 10,000 pairs · 4 pairs/s · 0:20:11 left",  # in 160 s
    ]


def test_the_clock_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow_items() -> object:
        for item in range(4):
            now[0] += 0.3
            yield item

    clock = Clock()
    for _ in clock.over(slow_items()):  # type: ignore[arg-type]
        now[0] += 0.1
    rate, wait = clock.read(160)
    assert rate == pytest.approx(100) and wait == pytest.approx(0.75)
    clock.reset()
    now[0] += 2
    assert clock.read(100) == (50.0, 0.0)
