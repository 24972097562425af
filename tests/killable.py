"""A pass over a table in processes of its own, killed at a part: for tests of what is left and how it goes on."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from truepair.annotate.parts import Parts


def in_processes(
    verb: Callable[[Any], object], args: Any, port: int, world: int = 1, die_after: int | None = None
) -> list[int | None]:
    """Exit codes of `world` ranks that do the verb with parts of 20 rows; each is killed after `die_after` parts."""
    fork = multiprocessing.get_context("fork")
    given = [(verb, args, port, number, world, die_after) for number in range(world)]
    processes = [fork.Process(target=_run, args=one) for one in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _run(verb: Callable[[Any], object], args: Any, port: int, number: int, world: int, die_after: int | None) -> None:
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": number}
    if world > 1:
        os.environ.update({name: str(value) for name, value in names.items()} | {"LOCAL_RANK": str(number)})
    opened, write, written = Parts.open, Parts.write, []

    def counted(*given: Any) -> None:
        if len(written) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(given)
        write(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "open", lambda *given, **named: opened(*given, **named, chunk=20))
        patch.setattr(Parts, "write", counted)
        verb(args)
