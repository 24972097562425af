"""A command runs in a process of its own, on its share of the machine, and is asked to stop before it is killed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truepair.bench.children import Child, asked_threads, places
from truepair.errors import UserError


def test_a_place_is_a_gpu_or_a_share_of_the_cores() -> None:
    shares = places(3, "auto", ["4", "GPU-9"], 16)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "GPU-9", "4"]
    assert [share.workers for share in shares] == [4, 4, 4]
    for device, gpus in (("auto", []), ("cpu", ["0"])):
        (share, other) = places(2, device, gpus, 6)
        assert share == other and share.environment == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
        assert share.workers == 2
    assert places(4, "auto", [], 2)[0].environment["OMP_NUM_THREADS"] == "1"
    assert places(2, "auto", [], 2)[0].workers == 0, "a decoding process would take the core from the training"
    assert places(1, "auto", [], 8, most=2)[0].environment["OMP_NUM_THREADS"] == "2"
    assert places(4, "auto", [], 8, most=16)[0].environment["OMP_NUM_THREADS"] == "2"
    with pytest.raises(UserError, match="--jobs -1"):
        places(-1, "auto", [], 2)


@pytest.mark.parametrize(("said", "threads"), [(None, 0), ("3", 3), ("", 0), ("2,1", 0), ("-1", 0)])
def test_the_user_may_limit_the_threads_of_a_cell(monkeypatch: pytest.MonkeyPatch, said: str, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert asked_threads() == threads


def test_a_process_tells_how_it_ended_and_what_it_said(tmp_path: Path) -> None:
    code = "import sys; print('{}'); print('said', file=sys.stderr); sys.exit(3)"
    child = Child([sys.executable, "-S", "-c", code], {}, log=tmp_path / "log", out=tmp_path / "out")
    assert wait_for(child) == 3
    assert (tmp_path / "log").read_text() == "said\n" and (tmp_path / "out").read_text() == "{}\n"


def test_a_process_that_is_asked_to_stop_may_end_in_its_own_way(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child = Child([sys.executable, "-S", "-c", code], {"A": "b"}, log=tmp_path / "log", out=tmp_path / "out")
    until(lambda: (tmp_path / "out").read_text() == "ready\n")
    assert child.poll() is None
    child.stop()
    assert wait_for(child) == 130


def wait_for(child: Child) -> Any:
    found: list[Any] = []
    until(lambda: found.append(child.poll()) or found[-1] is not None)
    return found[-1]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited 30 s")
