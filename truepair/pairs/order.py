"""In which order rows are read: a pure function of seed and epoch, nearly sequential on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from truepair.errors import UserError
from truepair.pairs.draws import generator

BLOCK = 1_024  # rows read one after the other (they lie side by side in a shard)
WINDOW = 65_536  # rows shuffled together; also what a page cache has to hold
SWAP_ROUNDS = 64


@dataclass(frozen=True)
class Order:
    """The global batches of every epoch.

    Blocks of `block` neighbouring rows are permuted, then rows within windows of about `window` positions. Batch t of
    an epoch is positions [tB, (t+1)B); rank r of W takes its r-th part. So the rows of a step depend on neither the
    number of ranks nor on what was read before: any step can be the first one of a resumed run. Up to B-1 rows are
    left out of an epoch (others each time), as contrastive losses need whole batches.

    rows: the rows in use, ascending (a subset filters here, without touching shards).
    groups: for each (n_table,) array of integers, no two rows of a batch share a value, as far as that is possible
        (a caption in more rows than a window has batches cannot be kept apart).
    """

    rows: npt.NDArray[np.int64]
    batch_size: int
    seed: int = 0
    block: int = BLOCK
    window: int = WINDOW
    groups: Sequence[npt.NDArray[np.int64]] = ()

    def __post_init__(self) -> None:
        if len(self.rows) < self.batch_size:
            raise UserError(
                f"{len(self.rows)} pairs do not fill one batch of {self.batch_size}; choose a --batch-size of at most "
                f"{len(self.rows)} or keep more pairs"
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.rows) // self.batch_size

    @property
    def _window(self) -> int:
        return -(-self.window // self.batch_size) * self.batch_size  # whole batches, so that no batch straddles two

    def batch(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """Row numbers (B,) of the global batch `step` of `epoch`."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        start = step * self.batch_size
        window = self._shuffled(epoch, start // self._window)
        offset = start % self._window
        return window[offset : offset + self.batch_size]

    def local(self, epoch: int, step: int, rank: int, world: int) -> npt.NDArray[np.int64]:
        """Row numbers (B/W,) that rank `rank` of `world` reads for the global batch `step`."""
        if self.batch_size % world:
            raise UserError(f"--batch-size {self.batch_size} is the global one and must be a multiple of {world} ranks")
        share = self.batch_size // world
        return self.batch(epoch, step)[rank * share : (rank + 1) * share]

    def shared(self, epoch: int, step: int) -> int:
        """How many rows of a batch share a group with an earlier row of it, over all `groups`."""
        rows = self.batch(epoch, step)
        return sum(len(rows) - len(np.unique(group[rows])) for group in self.groups)

    def _shuffled(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        return _window_rows(self, epoch, window)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: Any) -> bool:
        return self is other


@lru_cache(maxsize=4)
def _window_rows(order: Order, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """The rows of one window of one epoch, shuffled and, if wanted, with group-mates moved to different batches."""
    start = window * order._window
    stop = min(start + order._window, order.steps * order.batch_size)
    rows = order.rows[_positions(order, epoch, start, stop)]
    random = generator(order.seed, epoch, 1, window)
    random.shuffle(rows)
    if order.groups:
        rows = _apart(rows, order.batch_size, [group[rows] for group in order.groups], random)
    rows.flags.writeable = False
    return rows


def _positions(order: Order, epoch: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Indices into `order.rows` at positions [start, stop) of the epoch's block-permuted sequence."""
    blocks = _block_permutation(order, epoch)
    lengths = np.minimum((blocks + 1) * order.block, len(order.rows)) - blocks * order.block
    ends = np.cumsum(lengths)
    shift = generator(order.seed, epoch, 2).integers(len(order.rows))  # so that the rows left out differ each epoch
    where = (np.arange(start, stop) + shift) % len(order.rows)
    block = np.searchsorted(ends, where, side="right")
    positions: npt.NDArray[np.int64] = blocks[block] * order.block + where - (ends[block] - lengths[block])
    return positions


@lru_cache(maxsize=4)
def _block_permutation(order: Order, epoch: int) -> npt.NDArray[np.int64]:
    return generator(order.seed, epoch, 0).permutation(-(-len(order.rows) // order.block))


def _apart(
    rows: npt.NDArray[np.int64],
    batch_size: int,
    groups: list[npt.NDArray[np.int64]],
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Swap rows between the batches of a window until no batch holds a group twice; what cannot be mended stays.

    Each round swaps every row that repeats a group of its batch with a random row that does not; the best round wins.
    """
    batch = np.arange(len(rows)) // batch_size
    order = np.arange(len(rows))
    best, least = order, len(rows) + 1
    for _ in range(SWAP_ROUNDS):
        repeats = np.zeros(len(rows), bool)
        for group in groups:
            place = np.lexsort((group[order], batch))
            same = (np.diff(batch[place]) == 0) & (np.diff(group[order][place]) == 0)
            repeats[place[1:][same]] = True
        wrong, right = np.flatnonzero(repeats), np.flatnonzero(~repeats)
        if len(wrong) < least:
            best, least = order.copy(), len(wrong)
        if not len(wrong) or len(right) < len(wrong):
            break
        partners = random.choice(right, len(wrong), replace=False)
        order[wrong], order[partners] = order[partners], order[wrong]
    return rows[best]
