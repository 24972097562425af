"""The walk over all tiles: forward sums each objective's rows and columns, backward walks again with their slopes.

A tile of logits is computed once for both directions. Rows are whole on their rank; columns are summed over the images
of every rank and put together. Of the size of the matrix nothing is kept, and nothing exists but one tile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truepair.losses.distributed import all_gather, rank, world_size
from truepair.losses.objectives import Kept, Objective, State
from truepair.losses.running import Sums
from truepair.losses.tiles import Side, Tile, spans

TILE = {"cpu": (512, 1_024), "cuda": (4_096, 8_192)}  # rows × columns; a CPU's tile of float32 fits its cache (ours)
HALF = (torch.bfloat16,)  # float16 has no room for the slopes of a large batch, 1/(2·B²) at chance


@dataclass(frozen=True)
class Plan:
    """What is not differentiated: the shape of the matrix, its objectives, its queues."""

    pairs: int  # of this rank
    left_captions: int  # left sides of a pair
    right_captions: int
    rows: tuple[Objective, ...]
    columns: tuple[Objective, ...]
    left_queue: Tensor | None
    right_queue: Tensor | None

    @property
    def count(self) -> int:
        """Left sides of this rank."""
        return self.pairs * self.left_captions

    @property
    def row_span(self) -> slice:
        """This rank's rows in the global batch."""
        return slice(rank() * self.count, (rank() + 1) * self.count)

    @property
    def column_span(self) -> slice:
        """This rank's columns in the global batch."""
        width = self.pairs * self.right_captions
        return slice(rank() * width, (rank() + 1) * width)


@dataclass(frozen=True)
class Block:
    """A tile with the features that meet in it, in the type they are multiplied in, and its place in each gradient."""

    tile: Tile
    left: Tensor  # (R, D)
    right: Tensor  # (C, D)
    left_rows: slice | None  # of this rank's features; None for a queue's
    right_rows: slice | None  # of the gathered features; None for a queue's
    directions: tuple[bool, bool]  # whether the objectives of rows, of columns see it

    def seen_by(self, turned: bool) -> bool:
        """Whether the objectives of rows (False) or columns (True) see it."""
        return self.directions[turned]

    def logits(self, scale: Tensor, bias: Tensor | None) -> Tensor:
        """(R, C)."""
        logits = product(self.left, self.right.T, self.tile.dtype).mul_(scale)
        return logits if bias is None else logits.add_(bias)


def _blocks(left: Tensor, right: Tensor, plan: Plan, exact: torch.dtype) -> Iterator[Block]:
    """Every tile of the matrix that an objective of this rank has to see."""
    world, size = world_size(), TILE.get(left.device.type, TILE["cuda"])
    pairs = plan.pairs * world
    products = left.dtype if left.is_cuda and left.dtype in HALF and right.dtype == left.dtype else exact
    start = plan.row_span.start

    def tiles(lefts: Tensor, rights: Tensor, first: tuple[int, int], queues: tuple[bool, bool]) -> Iterator[Block]:
        for r in spans(0, len(lefts), size[0]):
            one = lefts[r].to(products)
            row = Side(slice(first[0] + r.start, first[0] + r.stop), plan.left_captions, pairs)
            for c in spans(0, len(rights), size[1]):
                column = Side(slice(first[1] + c.start, first[1] + c.stop), plan.right_captions, pairs)
                tile = Tile.of(row, column, r, left.device, exact)
                of_left, of_right = (None if queues[0] else r), (None if queues[1] else c)
                seen = bool(plan.rows) and not queues[0], bool(plan.columns) and not queues[1]
                yield Block(tile, one, rights[c].to(products), of_left, of_right, seen)

    yield from tiles(left, right, (start, 0), (False, False))
    if plan.right_queue is not None and plan.rows:
        yield from tiles(left, plan.right_queue, (start, len(right)), (False, True))
    if plan.left_queue is not None and plan.columns:  # each rank shows its share of the queue to all columns
        mine = torch.tensor_split(torch.arange(len(plan.left_queue)), world)[rank()]
        if len(mine):
            share = plan.left_queue[mine[0] : mine[-1] + 1]
            yield from tiles(share, right, (plan.count * world + int(mine[0]), 0), (True, False))


def _show(seeing: Sequence[tuple[Objective, State, bool]], logits: Tensor, tile: Tile, walk: int) -> None:
    """Let the objectives of rows (False) and columns (True) take in a tile. Columns' sums are for the whole batch."""
    for objective, state, turned in seeing:
        see = objective.collect if walk == 1 else objective.refine
        see(state, logits.T if turned else logits, tile.turned(tile.columns) if turned else tile)


def _slope(seeing: Sequence[tuple[Objective, bool, Kept, Tensor]], logits: Tensor, tile: Tile) -> Tensor:
    """(R, C) what all objectives together make of the slope in a tile's logits."""
    slope: Tensor | None = None
    for objective, turned, kept, upstream in seeing:
        if turned:
            part = objective.slope(kept, logits.T, tile.turned(tile.columns), upstream[tile.columns]).T
        else:
            part = objective.slope(kept, logits, tile, upstream[tile.at])
        slope = part if slope is None else slope.add_(part)
    assert slope is not None
    return slope


show: Callable[..., Any] = _show
slope_of: Callable[..., Any] = _slope


def compile_tiles(**how: Any) -> None:
    """From now on torch.compile what is done to a tile between its products: a few fused kernels in place of many.

    For GPUs; the first steps wait for the compiler. how: arguments of torch.compile. Results change by rounding only.
    """
    global show, slope_of
    show, slope_of = (torch.compile(function, dynamic=True, **how) for function in (_show, _slope))


def row_tiles(
    count: int, left_captions: int, right_captions: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[Tile]:
    """The tiles of this rank's `count` rows with all columns of the global batch, to look at without a loss."""
    pairs = count // left_captions * world_size()
    size, start = TILE.get(device.type, TILE["cuda"]), rank() * count
    for r in spans(0, count, size[0]):
        row = Side(slice(start + r.start, start + r.stop), left_captions, pairs)
        for c in spans(0, pairs * right_captions, size[1]):
            yield Tile.of(row, Side(c, right_captions, pairs), r, device, dtype)


class Walk(torch.autograd.Function):
    """(left (N, D), right (W·M, D), scale, bias, plan) -> the (N,) loss of each of plan.rows, (M,) of plan.columns."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor | None, plan: Plan
    ) -> tuple[Tensor, ...]:
        exact = torch.float64 if left.dtype == torch.float64 else torch.float32
        numbers = scale.to(exact), None if bias is None else bias.to(exact)
        like = left.new_empty(0, dtype=exact)
        states = [(objective, objective.start(len(left), like), False) for objective in plan.rows]
        states += [(objective, objective.start(len(right), like), True) for objective in plan.columns]

        with torch.autocast(left.device.type, enabled=False):
            for walk in (1, 2):
                waiting = [entry for entry in states if entry[0].walks >= walk]
                if not waiting:
                    break
                for block in _blocks(left, right, plan, exact):
                    seeing = [entry for entry in waiting if block.seen_by(entry[2])]
                    show(seeing, block.logits(*numbers), block.tile, walk)
                for objective, state, turned in waiting:
                    if turned:
                        _combine(state, walk)
                    if walk == 1:
                        objective.prepare(state)

        losses: list[Tensor] = []
        kept: list[Kept] = []
        for objective, state, turned in states:
            value, keep = objective.value(state, slice(0, len(right)) if turned else plan.row_span)
            losses.append(value[plan.column_span] if turned else value)
            kept.append(keep)
        ctx.plan, ctx.exact, ctx.sizes = plan, exact, [len(keep) for keep in kept]
        ctx.save_for_backward(left, right, scale, bias, *(tensor for keep in kept for tensor in keep))
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        left, right, scale, bias, *flat = ctx.saved_tensors
        plan, exact = ctx.plan, ctx.exact
        numbers = scale.to(exact), None if bias is None else bias.to(exact)
        kept = [tuple(part) for part in _split(flat, ctx.sizes)]
        objectives = [(objective, False) for objective in plan.rows] + [(objective, True) for objective in plan.columns]
        used = [
            (objective, turned, keep, all_gather(up.to(exact)) if turned else up.to(exact))
            for (objective, turned), keep, up in zip(objectives, kept, upstream, strict=True)
            if up is not None
        ]
        to_left = torch.zeros(left.shape, dtype=exact, device=left.device)
        to_right = torch.zeros(right.shape, dtype=exact, device=left.device)
        to_scale, to_bias = to_left.new_zeros(()), to_left.new_zeros(())

        with torch.autocast(left.device.type, enabled=False):
            for block in _blocks(left, right, plan, exact):
                seeing = [entry for entry in used if block.seen_by(entry[1])]
                if not seeing:
                    continue
                slope = slope_of(seeing, block.logits(*numbers), block.tile)
                steep = slope.to(block.left.dtype)  # half precision multiplies in half precision, and adds in float32
                pull = product(steep, block.right, exact)  # (R, D), without the scale
                to_scale += torch.linalg.vecdot(pull, block.left.to(exact)).sum()
                to_bias += slope.sum()
                if block.left_rows is not None:
                    to_left[block.left_rows].add_(pull)
                if block.right_rows is not None and ctx.needs_input_grad[1]:
                    to_right[block.right_rows].add_(product(steep.T, block.left, exact))
        return (
            to_left.mul_(numbers[0]).to(left.dtype),
            to_right.mul_(numbers[0]).to(right.dtype) if ctx.needs_input_grad[1] else None,
            to_scale.to(scale.dtype).view_as(scale),
            None if bias is None else to_bias.to(bias.dtype).view_as(bias),
            None,
        )


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, summed and given in `dtype`: half precision on a GPU is multiplied by its tensor cores as it is."""
    return torch.mm(a, b, out_dtype=dtype) if a.dtype in HALF else torch.mm(a, b)


def _combine(state: State, walk: int) -> None:
    """Put together over ranks what this walk has summed; the second only adds plain sums."""
    for sums in (*state.sums, *state.target):
        if walk == 1 or (isinstance(sums, Sums) and sums in state.sums):
            sums.combine()


def _split(tensors: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[Sequence[Tensor]]:
    start = 0
    for size in sizes:
        yield tensors[start : start + size]
        start += size
