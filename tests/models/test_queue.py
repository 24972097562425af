"""The queue holds the newest pairs of all ranks and nothing else, as a bounded deque would."""

import multiprocessing
from collections import deque
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from truepair.errors import UserError
from truepair.losses.distributed import rank, world_size
from truepair.models.queue import Queue

WIDTH = 3
Held = tuple[tuple[float, ...], tuple[float, ...]]


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(count, 3) image and text features, (count,) row and caption ids from few."""
    draw = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, WIDTH, generator=draw)
    return image, text, *torch.randint(0, 6, (2, count), generator=draw)


def as_set(image: Tensor, text: Tensor) -> list[Held]:
    return sorted((tuple(i), tuple(t)) for i, t in zip(image.tolist(), text.tolist(), strict=True))


def entries(pushed: tuple[Tensor, ...]) -> list[tuple[Held, int, int]]:
    image, text, rows, captions = (x.tolist() for x in pushed)
    return [((tuple(i), tuple(t)), r, c) for i, t, r, c in zip(image, text, rows, captions, strict=True)]


@given(
    size=st.integers(0, 9),
    counts=st.lists(st.integers(0, 12), max_size=8),
    rows=st.none() | st.lists(st.integers(0, 6), max_size=3),
    captions=st.none() | st.lists(st.integers(0, 6), max_size=3),
)
@settings(max_examples=150)
def test_it_holds_what_a_bounded_deque_holds_less_the_given_rows_and_captions(
    size: int, counts: list[int], rows: list[int] | None, captions: list[int] | None
) -> None:
    queue, plain = Queue(size, WIDTH), deque(maxlen=size)
    for seed, count in enumerate(counts):
        queue.push(*pairs(count, seed))
        plain.extend(entries(pairs(count, seed)))
        ids = [None if x is None else torch.tensor(x, dtype=torch.int64) for x in (rows, captions)]
        wanted = [held for held, r, c in plain if r not in (rows or []) and c not in (captions or [])]
        image, text = queue.without(*ids)
        assert as_set(image, text) == sorted(wanted)
        assert image.shape == text.shape == (len(wanted), WIDTH)


def test_a_pair_is_left_out_for_its_row_or_for_its_caption() -> None:
    queue = Queue(4, 1)
    at = torch.arange(4.0)[:, None]
    queue.push(at, -at, torch.tensor([10, 11, 12, 13]), torch.tensor([7, 8, 7, 9]))
    image, text = queue.without(rows=torch.tensor([13]), captions=torch.tensor([8]))
    assert image.flatten().tolist() == [0, 2] and text.flatten().tolist() == [0, -2]
    assert [len(x) for x in queue.without(captions=torch.tensor([7, 9]))] == [1, 1]


def test_what_it_gave_stays_and_can_be_learnt_through_after_the_next_push() -> None:
    queue = Queue(2, WIDTH)
    queue.push(*pairs(2, 0))
    image, _ = queue.without()
    seen, weight = image.clone(), torch.ones(WIDTH, requires_grad=True)
    loss = (image * weight).sum()
    queue.push(*pairs(2, 1))
    loss.backward()
    assert torch.equal(image, seen) and torch.equal(weight.grad, seen.sum(dim=0))


def test_it_keeps_values_without_their_graph_and_in_its_own_precision() -> None:
    queue = Queue(2, WIDTH)
    image, text, rows, captions = pairs(1, 0)
    queue.push(image.requires_grad_(), text.bfloat16(), rows, captions)
    held = queue.without()
    assert not any(x.requires_grad for x in (*held, queue.image)) and held[1].dtype == torch.float32


def test_a_saved_queue_goes_on_as_the_one_that_was_not_saved(tmp_path: Path) -> None:
    queue, loaded = Queue(5, WIDTH), Queue(5, WIDTH)
    for seed, count in enumerate((3, 4)):
        queue.push(*pairs(count, seed))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    loaded.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for one in (queue, loaded):
        one.push(*pairs(4, 2))
    assert all(torch.equal(a, b) for a, b in zip(queue.without(), loaded.without(), strict=True))


@pytest.mark.parametrize(
    "state", [None, {}, {"filled": 1.0, "next": 0}, {"filled": 6, "next": 0}, {"filled": -1, "next": 0},
              {"filled": 0, "next": 5}]
)  # fmt: skip
def test_a_state_of_no_such_queue_is_refused(state: object) -> None:
    queue = Queue(5, WIDTH)
    with pytest.raises(UserError, match="the checkpoint's queue"):
        queue.load_state_dict(queue.state_dict() | {"_extra_state": state})
    assert len(queue.without()[0]) == 0


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(UserError, match="a queue of -1 pairs cannot be"):
        Queue(-1, WIDTH)


def mine(pushed: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.chunk(world_size())[rank()] for x in pushed]


def run_rank(number: int, folder: Path) -> None:
    """A process of its own: push this rank's half of every step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    queue = Queue(7, WIDTH)
    for seed, count in enumerate((4, 10, 2)):
        queue.push(*mine(pairs(count, seed)))
    torch.save(queue.state_dict(), folder / f"{number}.pt")
    dist.destroy_process_group()


def test_every_rank_holds_the_pairs_of_all_as_one_process_would(tmp_path: Path) -> None:
    alone = Queue(7, WIDTH)
    for seed, count in enumerate((4, 10, 2)):
        alone.push(*pairs(count, seed))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["truepair.models.queue"])
    processes = [context.Process(target=run_rank, args=(i, tmp_path)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    wanted = alone.state_dict()
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert found.pop("_extra_state") == wanted["_extra_state"]
        assert all(torch.equal(x, wanted[name]) for name, x in found.items())
