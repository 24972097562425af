"""The same work on many drawings, one after another or spread over processes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from truepair.pairs.corpora.iconify import Drawing, render

Spread = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]  # as `map`: results in the order of the items
Progress = Callable[[int, int], None]  # how many of how many are done


@contextmanager
def spreading(workers: int) -> Iterator[Spread]:
    """A `map` that works here, or, with `workers` > 1, in that many processes."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=32)


def draw(drawing: Drawing, size: int) -> bytes | str:
    """The PNG of an icon, or the reason why there is none."""
    try:
        return render(drawing, size)
    except ValueError as error:
        return f"cannot be drawn: {error}"


def untold(_done: int, _total: int) -> None:
    """The progress nobody watches."""
