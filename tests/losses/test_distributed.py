"""One process, two ranks and three ranks give the same values and the same gradients.

Ranks are real gloo processes. Each embeds its share of the batch with common parameters; what data-parallel training
makes of their losses and gradients, the mean over ranks, must be what one process gets from the whole batch.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from truepair.losses import (
    Complement,
    CrossEntropy,
    Dense,
    Groups,
    Objective,
    Pooled,
    Relation,
    ReverseDivergence,
    Sharpened,
    Softened,
    Tokens,
    all_gather,
    pairwise_losses,
    sigmoid_rows,
    softmax_pairs,
    softmax_rows,
    weighted_mean,
)
from truepair.losses.distributed import rank, total, world_size
from truepair.losses.walk import TILE
from truepair.methods import METHODS
from truepair.methods.base import Features, Pairs
from truepair.models.queue import Queue

BATCH, CAPTIONS, WIDTH = 12, 2, 6
TILES = (5, 7)  # rows and columns of a tile: uneven in every number of ranks
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mine(whole: Tensor) -> Tensor:
    """This rank's part of what is known of the whole batch."""
    return whole.chunk(world_size())[rank()]


def own_softmax(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = softmax_rows(image, text, scale)
    return rows, weighted_mean(rows, weight) + weighted_mean(softmax_rows(text, image, scale))


def own_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = sigmoid_rows(image, text, scale, bias)
    return rows, weighted_mean(rows, weight) + weighted_mean(sigmoid_rows(text, image, scale, bias))


def groups(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = all_gather(mine(torch.arange(BATCH) % 5))
    columns = all_gather(mine(torch.arange(BATCH * CAPTIONS) // CAPTIONS % 5))
    soft = softmax_rows(image, text, scale, Groups(rows, columns))
    return soft, weighted_mean(soft + sigmoid_rows(image, text, scale, bias, Groups(rows, columns, normalise=False)))


def dense(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    target = Dense(drawn(BATCH, BATCH * CAPTIONS, seed=7).clamp_min(0))
    rows = softmax_rows(image, text, scale, target)
    return rows, weighted_mean(rows + sigmoid_rows(image, text, scale, bias, target), weight)


def both_softmax(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = softmax_pairs(image, text, scale)
    return rows, weighted_mean(rows, weight) + weighted_mean(columns, weight.repeat_interleave(CAPTIONS))


def of_objective(objective: Callable[[Pooled | Tokens], Objective], tokens: bool = False) -> Callable[..., Any]:
    """A loss of both directions, with a second similarity of pairs, and a queue on either side unless it has tokens."""

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        queue = normalize(drawn(7, WIDTH, seed=9), dim=1)
        if tokens:
            guides = [Tokens.gathered(normalize(mine(drawn(BATCH, 3, 4, seed=seed)), dim=2)) for seed in (5, 6)]
            queues = {}
        else:
            of_image, of_text = (normalize(mine(drawn(BATCH, 4, seed=seed)), dim=1) for seed in (5, 6))
            text_guide = Pooled.gathered(of_text.repeat_interleave(CAPTIONS, dim=0), of_image, queue=queue[:, :4])
            image_guide = Pooled.gathered(of_image, of_text.repeat_interleave(CAPTIONS, dim=0), queue=queue[:, :4])
            guides, queues = [image_guide, text_guide], {"left_queue": queue, "right_queue": -queue}
        one, other = (objective(guide) for guide in guides)
        (rows,), (columns,) = pairwise_losses(image, text, scale, bias, rows=[one], columns=[other], **queues)
        return rows, weighted_mean(rows, weight) + weighted_mean(columns, weight.repeat_interleave(CAPTIONS))

    return loss


def of_method(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        kind = METHODS[name]
        ids = mine(torch.arange(BATCH * CAPTIONS) % 20)  # some captions are the same on several ranks
        pairs = Pairs(torch.arange(len(image)), 1 - weight, {}, epoch=3.5, epochs=4, captions=ids)
        twin = {"r": image.detach(), "t": text[::CAPTIONS].detach()} if name == "softclip" else {}
        twin |= {"x": image.detach(), "t": text.detach()} if name == "fff" else {}
        twin |= {"nll": (text * text.cumsum(dim=1)).sum(dim=1)} if name == "nlip" else {}  # of something
        method = kind(kind.Options())
        if name.startswith("never"):
            return of_never(method, image, text[::CAPTIONS], scale, pairs)
        result = method.loss(Features(image, text, twin), scale, bias, pairs)
        return result.per_pair, result.total

    return loss


def of_never(method: Any, f: Tensor, g: Tensor, scale: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """NEVER with the split of all ranks, hard negatives of all ranks, and a queue that a first step fills."""
    method = type(method)(replace(method.options, selection="global", queue=BATCH + 3, queue_apart=True))
    method.queue = Queue(method.options.queue, WIDTH).double()
    seeds = mine(torch.arange(BATCH) * 7919)
    pairs = replace(pairs, rows=seeds, captions=pairs.captions[::CAPTIONS], images=seeds, seeds=seeds)
    parts = {"f_l": torch.stack([f, -f.roll(1, dims=1)], dim=1).detach(), "g_l": g[:, None].detach()}
    features = Features(f, g, {"f_m": f.detach().roll(1, dims=1), "g_m": g.detach().flip(1), **parts})
    if method.options.fuses:
        features.extra |= {"cells": f[:, None], "hidden": g[:, None], "attended": g > -1}
        features.extra |= {"mlm": f.sum(dim=1), "mlm_taught": g.sum(dim=1), "gaps": seeds % 3, "hits": seeds % 2}
        method.fusion = Halves()
    for _ in range(2):
        fused = method.fuse(features, scale.detach(), pairs)
        result = method.loss(Features(f, g, features.extra | fused), scale, None, pairs)
    assert result.noisy is not None and 0 < total(result.noisy.sum()) <= BATCH // 2
    return torch.where(result.noisy, -result.per_pair, result.per_pair), result.total


class Halves(torch.nn.Module):
    """In place of a fusion encoder: the sum of image and text, its halves being the logits."""

    def forward(self, text: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        return text + image

    def match(self, fused: Tensor) -> Tensor:
        return fused[:, 0].unflatten(1, (2, -1)).sum(dim=2)


LOSSES = {
    "own softmax": own_softmax,
    "own sigmoid": own_sigmoid,
    "groups": groups,
    "dense": dense,
    "both": both_softmax,
}
LOSSES |= {
    "softened": of_objective(lambda guide: CrossEntropy(Softened(guide, 0.4), divergence=True)),
    "relations": of_objective(lambda guide: CrossEntropy(Relation(guide), others=True)),
    "relations of tokens": of_objective(lambda guide: CrossEntropy(Relation(guide), others=True), tokens=True),
    "reverse": of_objective(lambda guide: ReverseDivergence(Softened(guide, 0.4))),
    "complement": of_objective(lambda guide: Complement(Sharpened(Softened(guide, 0.4)))),
}
LOSSES |= {name: of_method(name) for name in METHODS}


def results() -> dict[str, dict[str, Tensor]]:
    """For every loss: this rank's rows, its total, and the gradient of the total in the common parameters."""
    found = {}
    for name, loss in LOSSES.items():
        towers = [drawn(8, WIDTH, seed=seed).requires_grad_() for seed in (1, 2)]
        scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (9.0, -2.0))
        image = normalize(mine(drawn(BATCH, 8, seed=3)) @ towers[0], dim=1)
        text = normalize(mine(drawn(BATCH * CAPTIONS, 8, seed=4)) @ towers[1], dim=1)
        weight = mine(torch.linspace(0, 1, BATCH, dtype=torch.float64))  # uneven between ranks, one of them zero
        rows, value = loss(image, text, scale, bias, weight)
        gradients = torch.autograd.grad(value, [*towers, scale, bias], allow_unused=True, materialize_grads=True)
        found[name] = {"rows": rows.detach(), "total": value.detach()}
        found[name] |= dict(zip(("image tower", "text tower", "scale", "bias"), gradients, strict=True))
    return found


def run_rank(number: int, world: int, folder: Path) -> None:
    """A process of its own: compute this rank's results and write them down."""
    torch.set_num_threads(1)
    TILE["cpu"] = TILES
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    assert total(torch.tensor(number)).item() == sum(range(world))
    torch.save(results(), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Results of each of 2, then 3 ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")  # one import of torch for all ranks
    context.set_forkserver_preload(["truepair.methods"])
    processes = [context.Process(target=run_rank, args=(i, request.param, folder)) for i in range(request.param)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * request.param
    return [torch.load(folder / f"{i}.pt") for i in range(request.param)]


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_together_have_the_rows_the_mean_and_the_gradients_of_one_process(ranks: list[dict], name: str) -> None:
    alone = results()[name]
    torch.testing.assert_close(torch.cat([of[name]["rows"] for of in ranks]), alone["rows"], **CLOSE)
    for quantity in ("total", "image tower", "text tower", "scale", "bias"):
        mean = sum(of[name][quantity] for of in ranks) / len(ranks)
        torch.testing.assert_close(mean, alone[quantity], **CLOSE)


def test_one_process_gathers_nothing() -> None:
    x = torch.ones(2, 3)
    assert all_gather(x) is x and world_size() == 1 and rank() == 0 and total(x).equal(x)
