"""A command in a process of its own: started on its share of the machine, and asked to stop."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from truepair.errors import UserError


@dataclass(frozen=True)
class Place:
    """A share of the machine for one cell at a time. name: "GPU 0", "2 threads"."""

    name: str
    workers: int  # decoding processes
    environment: Mapping[str, str] = field(default_factory=dict)


class Process(Protocol):
    """A running command."""

    def poll(self) -> int | None:
        """Its exit status, -N if signal N ended it; None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end (SIGTERM)."""

    def kill(self) -> None:
        """End it at once."""


class Start(Protocol):
    """Starts a command: its standard output goes to the file `out`, what it says is added to `log`."""

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, out: Path, lock: int | None
    ) -> Process:
        """The running command, in a process group of its own: a Ctrl-C in the terminal is not for it."""


class Child:
    """A command that runs in a process of its own (`Start`)."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, out: Path, lock: int | None = None
    ) -> None:
        with log.open("ab") as said, out.open("wb") as printed:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                env=os.environ | environment,
                process_group=0,
                pass_fds=() if lock is None else (lock,),
            )

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def places(jobs: int, device: str, gpus: Sequence[str], cores: int, most: int = 0) -> list[Place]:
    """`jobs` shares of the machine: a GPU each, in turn where there are fewer, or cores / jobs threads each.

    device: what the runs ask for. gpus: names for CUDA_VISIBLE_DEVICES. most: threads of a share at most; 0: no limit.
    Raises UserError if jobs is under 1.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs} makes no sense; 1 runs one cell after another")
    threads = max(1, min(cores // jobs, most or cores))
    if gpus and device in ("auto", "cuda"):
        workers = max(1, min(8, threads - 1))
        names = [gpus[number % len(gpus)] for number in range(jobs)]
        return [Place(f"GPU {name}", workers, {"CUDA_VISIBLE_DEVICES": name} | _threads(1)) for name in names]
    # With one thread a decoding process would only take the core from the training.
    return [Place(f"{threads} thread{'s' * (threads > 1)}", min(8, threads - 1), _threads(threads))] * jobs


def _threads(number: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES takes them. Loads torch."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",") if name.strip()][:count] or [str(n) for n in range(count)]


def asked_threads() -> int:
    """Threads that the user lets a process have (OMP_NUM_THREADS), 0 where nothing, or no number, is said."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else 0


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
