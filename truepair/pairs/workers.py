"""Items made in worker processes: started alike, errors told as they are, gone when no longer needed."""

import signal
import sys
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from truepair.errors import UserError

Item = TypeVar("Item", covariant=True)
SHUTDOWN_SECONDS = 5


class Source(Protocol[Item]):
    """Anything that makes item i."""

    def __getitem__(self, index: int) -> Item: ...


class _Telling(Dataset[Any]):
    """Hands a UserError over as an item: torch would wrap it, raised, into a traceback of its own."""

    def __init__(self, source: Source[Any]) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Any:
        try:
            return self.source[index]
        except UserError as error:
            return error


def _start(_: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may come to all processes; the parent saves and ends us
        signal.signal(number, signal.SIG_IGN)


def items(
    source: Source[Item], indices: Sequence[int], *, workers: int, pin: bool = False
) -> Generator[Item, None, None]:
    """source[i] for every i of `indices`, in order, made by `workers` processes of one thread each (0: by this one).

    Close the iterator when done with it (`contextlib.closing`): that ends the workers, also after an error.
    Raises a worker's UserError as it was.
    """
    loader: DataLoader[Any] = DataLoader(
        _Telling(source),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # shares the mapped columns
    )
    made: Any = iter(loader)
    try:
        for item in made:
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        if workers:
            made._shutdown_workers()
            for worker in made._workers:  # one that is still at work ignores being terminated
                worker.join(SHUTDOWN_SECONDS)
                worker.kill()
