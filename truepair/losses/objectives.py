"""The loss of a row, from its logits seen tile by tile, and the loss's slope: one class a formula.

Each is used by `pairwise_losses` in the same way: `start` makes running sums for n rows, `collect` takes in a tile in
the first walk, `prepare` closes it, `refine` takes in a tile again in a second walk (only if `walks` is 2), `value`
gives the losses and what must be kept, and `slope` the derivative of Σ_i upstream_i · loss_i in a tile's logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.losses.running import LogSumExp, Sums, TopAndRest
from truepair.losses.targets import Normalised, Own, Relation, Sharpened, Softened, Target, without_own
from truepair.losses.tiles import Tile

Kept = tuple[Tensor, ...]  # (n,) each


@dataclass
class State:
    """The sums of one objective during the walks: its own, its target's, and what the first walk has settled."""

    sums: tuple[Any, ...]
    target: tuple[Any, ...] = ()
    settled: Kept = ()  # of the objective
    normalisers: Kept = ()  # of the target


class Objective(Protocol):
    """A loss a row. Rows are those of one direction; see the module's text for the order of calls."""

    @property
    def walks(self) -> int: ...  # over all tiles before the value is known: 1 or 2

    def start(self, n: int, like: Tensor) -> State: ...

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None: ...  # logits (R, C)

    def prepare(self, state: State) -> None: ...

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None: ...

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]: ...  # (n,); rows: in the global batch

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor: ...  # upstream (R,) -> (R, C)


def _tile(target: Target | Normalised, tile: Tile, normalisers: Sequence[Tensor]) -> Tensor | None:
    return target.tile(tile, normalisers) if isinstance(target, Normalised) else target.tile(tile)


def _weighted(logits: Tensor, tile: Tile, weight: Target | None, others: bool) -> Tensor:
    """Logits of which a softmax is a weighted one, or one without the own pairs."""
    weights = None if weight is None else weight.tile(tile)
    logits = logits if weights is None else logits + weights.log()
    return without_own(logits, tile) if others else logits


@dataclass(frozen=True)
class CrossEntropy:
    """-Σ_j q_ij log p_ij, p_ij = w_ij e^s_ij / Σ_k w_ik e^s_ik.

    target: q; rows need not sum to 1, one of zeros costs 0. weight: w ≥ 0, default 1; 0 takes a column out, and its
    target must be 0 there. others: own pairs are taken out, for targets that are 0 there. divergence: less the
    target's own entropy, KL(q‖p), which has the same gradient and costs a second walk.
    Raises ValueError for targets that are known to have mass where nothing can be chosen.
    Source: InfoNCE (CLIP: Radford et al., 2021) with `Own`; KL(Q‖P) and its relation form of SoftCLIP (§4).
    """

    target: Target | Normalised = field(default_factory=Own)
    weight: Target | None = None
    others: bool = False
    divergence: bool = False

    def __post_init__(self) -> None:
        if self.others and isinstance(self.target, Own | Softened | Sharpened):
            raise ValueError(
                f"the softmax of the others has no own pair for {type(self.target).__name__}; use Relation"
            )
        if self.weight is not None and isinstance(self.target, Normalised):
            raise ValueError("a weighted softmax needs a target that is 0 with its weights; a softmax as target is not")

    @property
    def walks(self) -> int:
        """Two where the target cannot be had, or its entropy, before its rows are normalised."""
        return 2 if isinstance(self.target, Normalised) and (self.divergence or not self._fused) else 1

    @property
    def _fused(self) -> bool:
        return isinstance(self.target, Softened | Relation)

    def start(self, n: int, like: Tensor) -> State:
        target = self.target.start(n, like) if isinstance(self.target, Normalised) else ()
        return State((LogSumExp(n, like), Sums(3, n, like)), target)  # Σ_j q, Σ_j q s, Σ_j q log q

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None:
        logits = _weighted(logits, tile, self.weight, self.others)
        state.sums[0].add(tile.at, logits)
        if isinstance(self.target, Softened | Relation):
            self.target.collect(state.target, tile, self._finite(logits))
        elif isinstance(self.target, Normalised):
            self.target.collect(state.target, tile)
        else:
            self._add(state, logits, tile, self.target.tile(tile))

    def prepare(self, state: State) -> None:
        state.settled = (state.sums[0].value,)
        if isinstance(self.target, Normalised):
            state.normalisers = self.target.normalisers(state.target)

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None:
        if isinstance(self.target, Normalised):
            q = self.target.tile(tile, state.normalisers)
            self._add(state, _weighted(logits, tile, self.weight, self.others), tile, q)

    def _add(self, state: State, logits: Tensor, tile: Tile, q: Tensor | None) -> None:
        if q is not None:
            entropy = (torch.xlogy(q, q).sum(dim=1),) if self.divergence else ()
            state.sums[1].add(tile.at, q.sum(dim=1), (q * self._finite(logits)).sum(dim=1), *entropy)

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]:
        (log_sum,) = state.settled
        mass, dot, entropy = state.sums[1]
        if self.walks == 1 and isinstance(self.target, Softened | Relation):
            dot = self.target.expectation(state.target, rows)
            mass = torch.ones_like(dot).masked_fill_(log_sum <= torch.finfo(dot.dtype).min, 0.0)
        return mass * log_sum - dot + entropy, (log_sum, mass, *state.normalisers)

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor:
        log_sum, mass, *normalisers = kept
        p = _weighted(logits, tile, self.weight, self.others).sub(log_sum[tile.at, None]).exp_()
        p.mul_((upstream * mass[tile.at])[:, None])
        q = _tile(self.target, tile, normalisers)
        return p if q is None else p.addcmul_(q, upstream[:, None], value=-1)

    def _finite(self, logits: Tensor) -> Tensor:
        """A column that cannot be chosen counts 0 in sums: its target is 0, and 0 · -inf would be NaN."""
        chosen = self.weight is None and not self.others
        return logits if chosen else logits.masked_fill(logits == -torch.inf, 0.0)


@dataclass(frozen=True)
class LogPartition:
    """log Σ_j w_ij e^s_ij: the normaliser of a softmax whose numerators are had elsewhere.

    weight: w ≥ 0, default 1; 0 takes a column out. others: own pairs are taken out. A row that has no column left gives
    the lowest finite number.
    """

    weight: Target | None = None
    others: bool = False
    walks = 1

    def start(self, n: int, like: Tensor) -> State:
        return State((LogSumExp(n, like),))

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None:
        state.sums[0].add(tile.at, _weighted(logits, tile, self.weight, self.others))

    def prepare(self, state: State) -> None:
        state.settled = (state.sums[0].value,)

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None: ...

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]:
        return state.settled[0].clone(), state.settled

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor:
        p = _weighted(logits, tile, self.weight, self.others).sub(kept[0][tile.at, None]).exp_()
        return p.mul_(upstream[:, None])


@dataclass(frozen=True)
class ReverseDivergence:
    """KL(p‖q) = Σ_j p_ij log(p_ij / (q_ij + ε)): the other half of SoftCLIP's symmetric form (METHODS.md §4).

    others: own pairs are taken out of p. ε = 1e-8, recalled from the paper's formula.
    """

    target: Target | Normalised
    others: bool = False
    epsilon: float = 1e-8
    walks = 2

    def start(self, n: int, like: Tensor) -> State:
        target = self.target.start(n, like) if isinstance(self.target, Normalised) else ()
        return State((LogSumExp(n, like, means=1), Sums(1, n, like)), target)

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None:
        state.sums[0].add(tile.at, self._chosen(logits, tile), logits)
        if isinstance(self.target, Normalised):
            self.target.collect(state.target, tile)

    def prepare(self, state: State) -> None:
        state.settled = (state.sums[0].value,)
        if isinstance(self.target, Normalised):
            state.normalisers = self.target.normalisers(state.target)

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None:
        p = self._p(state.settled[0], logits, tile)
        state.sums[1].add(tile.at, (p * self._log_q(tile, logits, state.normalisers)).sum(dim=1))

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]:
        (log_sum,) = state.settled
        empty = log_sum <= torch.finfo(log_sum.dtype).min
        value = (state.sums[0].mean(0) - log_sum - state.sums[1][0]).masked_fill(empty, 0.0)
        return value, (log_sum, value, *state.normalisers)

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor:
        log_sum, value, *normalisers = kept
        ratio = logits - (log_sum + value)[tile.at, None] - self._log_q(tile, logits, tuple(normalisers))
        return self._p(log_sum, logits, tile).mul_(ratio).mul_(upstream[:, None])

    def _chosen(self, logits: Tensor, tile: Tile) -> Tensor:
        return without_own(logits, tile) if self.others else logits

    def _p(self, log_sum: Tensor, logits: Tensor, tile: Tile) -> Tensor:
        return self._chosen(logits, tile).sub(log_sum[tile.at, None]).exp_()

    def _log_q(self, tile: Tile, logits: Tensor, normalisers: Kept) -> Tensor:
        q = _tile(self.target, tile, normalisers)
        return (torch.zeros_like(logits) if q is None else q).add(self.epsilon).log_()


@dataclass(frozen=True)
class Complement:
    """-Σ_j (1 - q_ij) log(1 - p_ij), p the row's softmax: negative learning (NEVER, METHODS.md §1, with `Sharpened`).

    Exact where p is next to 1: the largest logit's 1 - p is made of the others' sum. q in [0, 1].
    """

    target: Target | Normalised = field(default_factory=lambda: Own(normalise=False))
    walks = 2

    def start(self, n: int, like: Tensor) -> State:
        target = self.target.start(n, like) if isinstance(self.target, Normalised) else ()
        # sums: Σ w log(1-p), Σ w p/(1-p) over all columns but the largest, the largest's w
        return State((TopAndRest(n, like), Sums(3, n, like)), target)

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None:
        state.sums[0].add(tile.at, logits, tile.columns.start)
        if isinstance(self.target, Normalised):
            self.target.collect(state.target, tile)

    def prepare(self, state: State) -> None:
        top = state.sums[0]
        state.settled = (top.value, top.rest, top.index)
        if isinstance(self.target, Normalised):
            state.normalisers = self.target.normalisers(state.target)

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None:
        log_sum, rest, index = state.settled
        w = self._weight(tile, logits, state.normalisers)
        largest = self._largest(index, tile)
        p = (logits - log_sum[tile.at, None]).exp_()
        of_top = (rest - log_sum)[tile.at]  # log(1 - p) of the largest
        of_others = torch.log1p(-p.masked_fill(largest, 0.0))
        w_top, w_others = (w * largest).sum(dim=1), w.masked_fill(largest, 0.0)
        odds = (w_others * p / (1 - p).masked_fill(largest, 1.0)).sum(dim=1)
        state.sums[1].add(tile.at, w_top * of_top + (w_others * of_others).sum(dim=1), odds, w_top)

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]:
        terms, odds, w_top = state.sums[1]
        return -terms, (*state.settled, odds.clone(), w_top.clone(), *state.normalisers)

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor:
        # ∂(-log(1-p_j))/∂s_k = p_j/(1-p_j) (δ_jk - p_k); for the largest j = m, p_k p_m/(1-p_m) = p_m · e^(s_k - rest)
        log_sum, rest, index, odds, w_top, *normalisers = kept
        w = self._weight(tile, logits, tuple(normalisers))
        largest = self._largest(index, tile)
        p = (logits - log_sum[tile.at, None]).exp_()
        p_top = -torch.expm1((rest - log_sum)[tile.at])
        others = w * p / (1 - p).masked_fill(largest, 1.0) - p * odds[tile.at, None]
        others -= (w_top[tile.at] * p_top)[:, None] * (logits - rest[tile.at, None]).masked_fill(largest, 0.0).exp_()
        return torch.where(largest, p * (w_top - odds)[tile.at, None], others).mul_(upstream[:, None])

    def _weight(self, tile: Tile, logits: Tensor, normalisers: Kept) -> Tensor:
        q = _tile(self.target, tile, normalisers)
        return torch.ones_like(logits) if q is None else 1 - q

    def _largest(self, index: Tensor, tile: Tile) -> Tensor:
        columns = torch.arange(tile.columns.start, tile.columns.stop, device=index.device)
        return columns[None, :] == index[tile.at, None]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-Σ_j w_ij [y_ij log σ(z_ij) + (1-y_ij) log σ(-z_ij)]: every pair a yes-or-no question of its own.

    target: y, the probability of a match. weight: w, default 1; 0 leaves a pair out.
    For y in {0, 1} and w = 1 this is Σ_j softplus(∓z_ij), SigLIP's row (Zhai et al., 2023, eq. 1) and FFF's (§3).
    """

    target: Target | Normalised = field(default_factory=lambda: Own(normalise=False))
    weight: Target | None = None

    @property
    def walks(self) -> int:
        """Two where the target's rows are normalised."""
        return 2 if isinstance(self.target, Normalised) else 1

    def start(self, n: int, like: Tensor) -> State:
        target = self.target.start(n, like) if isinstance(self.target, Normalised) else ()
        return State((Sums(1, n, like),), target)

    def collect(self, state: State, logits: Tensor, tile: Tile) -> None:
        if isinstance(self.target, Normalised):
            self.target.collect(state.target, tile)
        else:
            self._add(state, logits, tile, self.target.tile(tile))

    def prepare(self, state: State) -> None:
        if isinstance(self.target, Normalised):
            state.normalisers = self.target.normalisers(state.target)

    def refine(self, state: State, logits: Tensor, tile: Tile) -> None:
        if isinstance(self.target, Normalised):
            self._add(state, logits, tile, self.target.tile(tile, state.normalisers))

    def _add(self, state: State, logits: Tensor, tile: Tile, y: Tensor | None) -> None:
        terms = F.softplus(logits) if y is None else F.softplus(logits) - y * logits
        w = None if self.weight is None else self.weight.tile(tile)
        state.sums[0].add(tile.at, (terms if w is None else w * terms).sum(dim=1))

    def value(self, state: State, rows: slice) -> tuple[Tensor, Kept]:
        return state.sums[0][0], state.normalisers

    def slope(self, kept: Kept, logits: Tensor, tile: Tile, upstream: Tensor) -> Tensor:
        y = _tile(self.target, tile, kept)
        w = None if self.weight is None else self.weight.tile(tile)
        slope = logits.sigmoid() if y is None else logits.sigmoid().sub_(y)
        slope = slope if w is None else slope.mul_(w)
        return slope.mul_(upstream[:, None])
