"""False negatives: pairs that describe each other's images.

Rows are compared block by block: all of them up to EXACT rows, beyond that within blocks of at most 2,048 similar rows,
made TREES times in different ways; so time is N · 2,048 · TREES and never N².
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.noise.issues.alike import components, groups
from truepair.noise.issues.base import DOUBTED, Evidence, Features, Floats, Found, Ints, Issue
from truepair.noise.near import BLOCK, similar_blocks

EXACT = 16_384  # rows that are all compared with each other
TREES = 2
SKETCH = 32  # directions in which rows are divided into blocks
PARTNERS = 16  # of a row in one comparison of two blocks
LARGEST = 1000  # rows of a group
AT_ONCE = 65_536

Edges = tuple[Ints, Ints, Floats]  # places i, j of pairs and how well they describe each other


def find(evidence: Evidence, threshold: float) -> Found:
    """Score of a row: the best of its partners'; groups of partners, none larger than LARGEST.

    Memory: about 0.3 KB a row, and some matrices of 2,048 x 2,048 on the features' device.
    """
    features = evidence.features
    assert features is not None, "`lacks` says so"
    score = np.full(len(evidence), np.nan, np.float32)
    group = np.full(len(evidence), -1)
    places = np.flatnonzero(~(evidence.p_noise[features.rows] >= DOUBTED))
    rows = features.rows[places]
    partners = _partners(features, places, evidence.image[rows], evidence.scale, threshold)
    score[rows] = partners.likeness
    together = _groups(partners)
    group[rows] = np.where(together >= 0, rows[together] if len(rows) else -1, -1)
    return Found(score, group)


def lacks(evidence: Evidence) -> str:
    return "" if evidence.features is not None else evidence.without_features


@dataclass(frozen=True)
class _Partners:
    """Of r rows. likeness: (r,) of the best partner, 0 without one. best: (r,) its place, the own one without.

    label: (r,) the least place among all that are connected by partners.
    """

    likeness: Floats
    best: Ints
    label: Ints


def _partners(features: Features, places: Ints, image: Ints, scale: float, threshold: float) -> _Partners:
    """Partners among `places` (r,), numbered 0 … r-1, of different images.

    Of a comparison's pairs only each row's best is kept, and which rows they connect: an edge a row.
    """
    likeness, best = np.zeros(len(places), np.float32), np.arange(len(places))
    joined: list[tuple[Ints, Ints]] = []
    for one, other in _compared(features, places):
        sides = features.of(places[one]), features.of(places[other])
        first, second, found = _between(sides, image[one], image[other], one, other, scale, threshold)
        order = np.argsort(found, kind="stable")  # of several to one row the last is kept
        for row, partner in ((first[order], second[order]), (second[order], first[order])):
            better = found[order] > likeness[row]
            likeness[row[better]], best[row[better]] = found[order][better], partner[better]
        members, place = np.unique(np.concatenate([first, second]), return_inverse=True)
        joined.append((members, members[components(len(members), *np.split(place, 2))]))
    none = np.zeros(0, np.int64)
    first, second = (np.concatenate([none, *side]) for side in zip(*joined, strict=True)) if joined else (none, none)
    return _Partners(likeness, best, components(len(places), first, second))


def _compared(features: Features, places: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Blocks of places that are compared with each other, or with themselves."""
    if len(places) <= EXACT:
        blocks = [np.arange(start, min(start + BLOCK, len(places))) for start in range(0, len(places), BLOCK)]
        yield from combinations_with_replacement(blocks, 2)
    else:
        for tree in _trees(features, places):
            yield from ((block, block) for block in tree)


def _between(
    sides: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    image: Ints,
    other_image: Ints,
    one: Ints,
    other: Ints,
    scale: float,
    threshold: float,
) -> Edges:
    """Pairs of a row of block `one` and a row of block `other`: the best PARTNERS of each row of either.

    Likeness of i and j: exp(s · (min(c_ij, c_ji) - max(c_ii, c_jj))), c_ij the cosine of image i and caption j.
    """
    (images, texts), (other_images, other_texts) = sides
    across = torch.minimum(images @ other_texts.T, texts @ other_images.T)  # (b, b')
    own, other_own = (images * texts).sum(1), (other_images * other_texts).sum(1)
    likeness = ((across - torch.maximum(own[:, None], other_own)) * scale).clamp(max=0).exp()
    alike = torch.from_numpy(image[:, None] == other_image).to(likeness.device)
    likeness[alike] = 0  # rows of one image, the row itself among them: another issue
    partner = torch.zeros_like(alike)
    for dim in (0, 1):
        best = likeness.topk(min(PARTNERS, likeness.shape[dim]), dim=dim).indices
        partner.scatter_(dim, best, True)
    row, column = (partner & (likeness >= threshold)).nonzero(as_tuple=True)
    return one[row.cpu().numpy()], other[column.cpu().numpy()], likeness[row, column].float().cpu().numpy()


def _trees(features: Features, places: Ints) -> list[list[Ints]]:
    """TREES ways of dividing `places` into blocks of similar rows, by the directions in which they vary most."""
    sample = places[:: max(1, len(places) // 4096)]
    centre, directions = _directions(_joint(features, sample))
    sketch = np.empty((len(places), directions.shape[1]), np.float32)
    for start in range(0, len(places), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        sketch[part] = ((_joint(features, places[part]) - centre) @ directions).cpu().numpy()
    generator = np.random.Generator(np.random.Philox(0))
    weights = [np.ones(sketch.shape[1]), *generator.uniform(0.3, 1, (TREES - 1, sketch.shape[1]))]
    return [similar_blocks(sketch * weight.astype(np.float32), np.arange(len(places))) for weight in weights]


def _joint(features: Features, places: Ints) -> Tensor:
    image, text = features.of(places)
    return normalize(image + text, dim=1)


def _directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the first SKETCH principal directions (D, k)."""
    centre = vectors.mean(dim=0)
    centred = (vectors - centre).double()
    found = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -SKETCH:]
    return centre, found.float()


def _groups(partners: _Partners) -> Ints:
    """(r,) a place of each group; one that is too large falls apart into chains of best partners, then into slices."""
    label = partners.label
    crowded = np.bincount(label, minlength=len(label))[label] > LARGEST
    if crowded.any():
        linked = np.where(crowded, partners.best, label)
        label = _sliced(components(len(label), np.arange(len(label)), linked))
    return groups(label)


def _sliced(label: Ints) -> Ints:
    """Labels of groups of at most LARGEST: a larger one is cut into slices in the order of its members."""
    order = np.argsort(label, kind="stable")
    begins = np.searchsorted(label[order], label[order])
    leader = begins + (np.arange(len(label)) - begins) // LARGEST * LARGEST
    cut = np.empty_like(label)
    cut[order] = order[leader]
    return cut


def caution(name: str, flagged: int, judged: int) -> str:
    """What to say where so many judged pairs belong together that the model, not the table, must be the reason.

    name: of the issue that flagged them. "" for any other one, and where at most half of them are flagged.
    """
    if name != false_negative_group.name or 2 * flagged <= judged:
        return ""
    return (
        "most pairs seem to describe each other, which says that the model tells too little apart to judge this; audit "
        "with a better one before you act on it"
    )


false_negative_group = Issue(
    name="false_negative_group",
    title="Pairs that describe each other",
    explanation=(
        "These captions fit one another's images nearly as well as their own, so a contrastive loss that pushes them "
        "apart pushes against the truth. Nothing is wrong with such pairs: train on them with a method that allows for "
        "it (truepair train --method fff or softclip), or keep one of a group. Two pairs belong together if, by the "
        "model, each one's caption is at least half as likely for the other's image as the better of the two is for "
        "its own (threshold ours). Pairs that are doubted themselves, and rows of one image, are not judged. Up to "
        "16,384 rows all are compared; in larger tables rows are compared within two divisions into blocks of 2,048 "
        "similar rows, which may miss some; each row is held to the 16 best in a block. A weak model finds more of "
        "them than there are. Groups hold 1,000 rows at most; larger ones are cut."
    ),
    score_says=(
        "how likely the best partner's caption is for this image and the other way round, against their own: 1 as "
        "likely"
    ),
    threshold=0.5,
    action="keep",
    find=find,
    lacks=lacks,
    grouped=True,
)
