"""Image-text matching: does this caption describe this picture? Asked of the given pairs and of hard negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.losses import all_gather, drawn_negatives, weighted_mean
from truepair.losses.distributed import evened
from truepair.losses.negatives import NONE
from truepair.losses.random import OTHER_IMAGE, OTHER_TEXT
from truepair.methods.base import Features, Pairs
from truepair.models.fusion import Fusion

MISMATCH, MATCH = 0, 1  # places in the logits


def match_with_negatives(
    fusion: Fusion, features: Features, twin: tuple[Tensor, Tensor], scale: Tensor, pairs: Pairs, *, local: bool
) -> dict[str, Tensor]:
    """Logits (B, 2) each of the given pairs `itm`, of each caption with another picture `itm_image` and of each picture
    with another caption `itm_text`, and (B,) bool `itm_image_found`, `itm_text_found`: whether there was another.

    features: of the student, with its tokens in `extra`: cells (B, P, w), hidden (B, L, v), attended (B, L).
    twin: (B, D) image and text features, among which negatives are drawn by the student's similarity to them.
    local: they are drawn from this rank's pairs (NEVER's code), else from those of all ranks.
    A picture's or a caption's own group, pairs with the same image or the same text, is never drawn from.
    """
    collect = (lambda x: x) if local else all_gather
    attended = evened(features.extra["attended"])  # as far as any caption goes
    length = attended.shape[1]
    hidden = F.pad(features.extra["hidden"], (0, 0, 0, length))[:, :length]
    cells = features.extra["cells"]
    every_cells, every_hidden, every_attended = (collect(x) for x in (cells, hidden, attended))
    seeds = pairs.seeds, collect(pairs.seeds)
    own = [(pairs.images, collect(pairs.images)), (pairs.captions, collect(pairs.captions))]
    other_image = drawn_negatives(features.text.detach(), collect(twin[0]), scale, own, seeds, OTHER_IMAGE)
    other_text = drawn_negatives(features.image.detach(), collect(twin[1]), scale, own, seeds, OTHER_TEXT)

    text = torch.cat([hidden, hidden, every_hidden[other_text]])
    mask = torch.cat([attended, attended, every_attended[other_text]])
    image = torch.cat([cells, every_cells[other_image], cells])
    given, of_image, of_text = fusion.match(fusion(text, mask, image)).chunk(3)
    found = {"itm_image_found": other_image != NONE, "itm_text_found": other_text != NONE}
    return {"itm": given, "itm_image": of_image, "itm_text": of_text} | found


def matching_loss(extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all that was asked, () as `weighted_mean` gives it, and the share answered rightly, ()."""
    asked = torch.cat([extra["itm"], extra["itm_image"], extra["itm_text"]])  # (3B, 2)
    matched = torch.ones_like(extra["itm_image_found"])
    counted = torch.cat([matched, extra["itm_image_found"], extra["itm_text_found"]]).to(asked.dtype)
    answer = torch.where(torch.arange(len(asked), device=asked.device) < len(matched), MATCH, MISMATCH)
    right = (asked.argmax(dim=1) == answer).to(asked.dtype)
    loss = weighted_mean(F.cross_entropy(asked, answer, reduction="none"), counted)
    return loss, (right * counted).sum() / counted.sum()


def match_probability(logits: Tensor) -> Tensor:
    """(n, 2) logits -> (n,) float32 probability of a match, c of METHODS.md §1; without gradient."""
    return logits.detach().float().softmax(dim=1)[:, MATCH]
