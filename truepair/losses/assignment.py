"""Positives beyond the own pairs: found by thresholds on three similarities, capped, counted (FFF, METHODS.md §3)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from truepair.losses.similarity import Similarity
from truepair.losses.tiles import Tile


@dataclass(frozen=True)
class Assignment:
    """A target, 1 for own captions, captions of the same text, and pairs that are similar enough; 0 for all others.

    Rows are images, columns captions. Similar enough is S_it > p1, or S_ii > p2 and S_it > p1', or S_tt > p3; of those
    that are new, a row takes the ones whose S_it is above its `floor`.

    s_it, s_ii, s_tt: similarities of the global batch. thresholds: (4,) p1, p1', p2, p3. captions: (N, K) ids of the
    global batch's captions, equal where texts are. floor: (n,) of this rank's rows; None: nothing new is taken.
    """

    s_it: Similarity
    s_ii: Similarity
    s_tt: Similarity
    thresholds: Tensor
    captions: Tensor
    floor: Tensor | None = None

    def tile(self, tile: Tile) -> Tensor:
        positive = self.known(tile)
        if self.floor is not None:
            similar, s_it = self.similar(tile)
            positive |= similar & (s_it > self.floor[tile.at, None])
        return positive.to(tile.dtype)

    def known(self, tile: Tile) -> Tensor:
        """(R, C) bool: the column has the text of one of the row's own captions."""
        rows, columns = self.captions[tile.rows], self.captions.flatten()[tile.columns]
        known = rows[:, :1] == columns
        for k in range(1, rows.shape[1]):
            known |= rows[:, k : k + 1] == columns
        return known

    def similar(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """(R, C) bool: the similarities call it a match; (R, C) S_it."""
        p1, p1_low, p2, p3 = self.thresholds.to(tile.dtype)
        s_it = self.s_it.tile(tile)
        similar = (s_it > p1) | ((s_it > p1_low) & (self.s_ii.tile(tile) > p2)) | (self.s_tt.tile(tile) > p3)
        return similar, s_it


@dataclass(frozen=True)
class Ignored:
    """A weight, 0 for own captions whose S_it is below `least` (() tensor): they neither attract nor repel; else 1."""

    s_it: Similarity
    least: Tensor

    def tile(self, tile: Tile) -> Tensor | None:
        if not tile.crosses:
            return None
        return (~(tile.own & (self.s_it.tile(tile) < self.least))).to(tile.dtype)


@dataclass(frozen=True)
class Mined:
    """What was found for this rank's rows, (n,) float32 each."""

    found: Tensor  # new pairs that are similar enough, before the cap
    new: Tensor  # of them, those that are taken
    same_text: Tensor  # other pairs' captions of the same text
    true: Tensor | None = None  # of the new ones, those that are true
    missing: Tensor | None = None  # true ones among all columns that `known` did not have: what there was to find


@torch.no_grad()
def mine(
    assignment: Assignment, tiles: Iterable[Tile], n: int, cap: int, truth: tuple[Tensor, Tensor] | None = None
) -> tuple[Assignment, Mined]:
    """Give each row a floor that lets at most `cap` new positives in, the most similar ones (equals all or none).

    tiles: of this rank's n rows (`row_tiles`), in the thresholds' dtype, that of the loss.
    truth: for the global batch, (N,) what an image shows and (N,) what a pair's captions say, in the same numbers,
    negative where unknown: what is found is counted by it, never chosen.
    """
    captions = assignment.captions
    best = torch.full((n, cap + 1), -torch.inf, dtype=assignment.thresholds.dtype, device=captions.device)
    right = torch.zeros(n, cap + 1, dtype=torch.bool, device=captions.device)
    found, same_text, missing = torch.zeros(3, n, device=captions.device)
    for tile in tiles:
        known = assignment.known(tile)
        same_text[tile.at] += (known & ~tile.own).sum(dim=1)
        similar, s_it = assignment.similar(tile)
        similar &= ~known
        found[tile.at] += similar.sum(dim=1)
        s_it = s_it.masked_fill(~similar, -torch.inf)
        true = torch.zeros_like(known)
        if truth is not None:
            shows, says = truth[0][tile.rows, None], truth[1][tile.column_pairs]
            true = (shows == says) & (shows >= 0)
            missing[tile.at] += (true & ~known).sum(dim=1)
        top = torch.cat([best[tile.at], s_it], dim=1).topk(cap + 1, dim=1)
        best[tile.at] = top.values
        right[tile.at] = torch.cat([right[tile.at], true], dim=1).gather(1, top.indices)
    taken = best > best[:, -1:]
    counted = None if truth is None else (taken & right).sum(dim=1).float()
    mined = Mined(found, taken.sum(dim=1).float(), same_text, counted, None if truth is None else missing)
    return replace(assignment, floor=best[:, -1]), mined
