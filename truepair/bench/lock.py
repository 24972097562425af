"""One bench in a directory at a time; and how a signal ends what a bench does before its cells run."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truepair.errors import UserError

NAME = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold the directory: a file descriptor that children inherit, so that runs which outlive a killed bench count too.

    Raises UserError if somebody else holds it.
    """
    descriptor = os.open(out / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _taken(descriptor):
            raise UserError(
                f"another bench, or a run that a killed one left behind, is at work in {out}; wait for it or stop it"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def held(out: Path) -> bool:
    """Whether somebody is at work in the directory."""
    if not (out / NAME).is_file():
        return False
    descriptor = os.open(out / NAME, os.O_RDWR)
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends what is done here as Ctrl-C does: by KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def collected() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT comes, in place of what they would do."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
