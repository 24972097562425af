"""SoftCLIP: targets softened by how alike the images are, and the texts (Gao et al., AAAI 2024, arXiv 2303.17561)."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.losses import (
    CrossEntropy,
    Objective,
    Once,
    Pooled,
    Relation,
    ReverseDivergence,
    Similarity,
    Softened,
    Tokens,
    pairwise_losses,
    per_pair_mean,
    weighted_mean,
)
from truepair.methods.base import Features, Inputs, Loss, Method, Needs, Pairs, feature_column
from truepair.models.dual import DualEncoder
from truepair.models.twin import Twin
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class SoftclipOptions:
    """Options of SoftCLIP; the provenance of each default stands beside it (docs/softclip.md)."""

    beta: float = 0.3  # share of the softmax of similarities in the target; re-implementations, recalled
    tau_guide: float = 0.07  # temperature of that softmax; ours
    soft: float = 1.0  # weight of the softened loss; recalled
    relation: float = 1.0  # weight of the loss over the negatives alone; recalled
    clip: float = 0.5  # weight of CLIP's loss; recalled
    symmetric: bool = False  # add KL(P‖Q) to both; an option of the paper's, recalled
    ramp_epochs: float = 1.0  # beta and relation rise linearly over the first epochs; ours, after NEVER's ramp
    image_features: str = ""  # the table's feature column of images (truepair embed); empty: the momentum twin's
    text_features: str = ""  # of texts
    twin: Literal["tokens", "pooled"] = "tokens"  # what the twin is asked for: patches and words, or one vector; ours
    momentum: float = 0.995  # of the twin; NEVER's and ALBEF's code

    def __post_init__(self) -> None:
        if not (0 <= self.beta <= 1 and self.tau_guide > 0 and self.ramp_epochs >= 0):
            raise UserError(
                f"softclip's beta {self.beta} must be in [0, 1], tau_guide {self.tau_guide} positive, "
                f"ramp_epochs {self.ramp_epochs} 0 or more"
            )
        if min(self.soft, self.relation, self.clip) < 0 or self.soft + self.relation + self.clip == 0:
            raise UserError(
                f"softclip's weights soft {self.soft}, relation {self.relation}, clip {self.clip} must be 0 or more, "
                "and one of them more"
            )


class Softclip(Method):
    """L = w_soft·L_soft + w_re·L_re + w_clip·L_CLIP, each the mean of both directions (METHODS.md §4).

    Q = (1-β)·I + β·softmax(r rᵀ/τ_r) guides image→text, Q' the same of t tᵀ guides text→image; both are constants.
    L_soft = KL(Q‖P); L_re = KL(Q*‖P*), both without the own pair and renormalised. Divergences are given without the
    targets' entropy, which has no gradient.
    """

    Options = SoftclipOptions

    def __init__(self, options: SoftclipOptions) -> None:
        super().__init__(options)
        columns = (options.image_features, options.text_features)
        self.needs = Needs(columns=tuple(name for name in columns if name))

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        if not (self.options.image_features and self.options.text_features):
            self.twin = Twin(model, self.options.momentum)

    def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
        """r and t of the twin, one set of tokens (b, P, w) or vector (b, D) a pair."""
        options, images, tokens = self.options, inputs.images[0], inputs.tokens
        pairs = images.shape[0]
        found = {}
        if not options.image_features:
            fine = options.twin == "tokens"
            found["r"] = self.twin.image_tokens(images) if fine else self.twin.encode_image(images)
        if not options.text_features:
            if options.twin == "tokens":
                words = self.twin.text_tokens(tokens)  # (b·K, L, w)
                words = F.pad(words, (0, 0, 0, model.context_length - words.shape[1]))  # alike on all ranks
                found["t"] = words.reshape(pairs, -1, words.shape[-1])
            else:
                found["t"] = self._mean_text(tokens, pairs)
        return found

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        options = self.options
        ramp = min(1.0, pairs.epoch / options.ramp_epochs) if options.ramp_epochs else 1.0
        r = features.extra["r"] if "r" in features.extra else feature_column(pairs, options.image_features, (2, 3))
        t = features.extra["t"] if "t" in features.extra else feature_column(pairs, options.text_features, (2, 3))

        def objectives(guide: Similarity) -> list[Objective]:
            guide = Once(guide)
            soft, relation = Softened(guide, ramp * options.beta), Relation(guide)  # Q, Q*
            found: list[Objective] = [CrossEntropy(), CrossEntropy(soft), CrossEntropy(relation, others=True)]
            if options.symmetric:
                found += [ReverseDivergence(soft), ReverseDivergence(relation, others=True)]
            return found

        i2t, t2i = pairwise_losses(
            *(features.image, features.text, scale),
            rows=objectives(self._guide(r)),
            columns=objectives(self._guide(t)),
        )
        l_clip, l_soft, l_re, *reverse = (per_pair_mean(row, column) for row, column in zip(i2t, t2i, strict=True))
        if options.symmetric:
            l_soft, l_re = l_soft + reverse[0], l_re + reverse[1]
        rows = options.soft * l_soft + ramp * options.relation * l_re + options.clip * l_clip  # (B,)
        terms = {"clip": l_clip.detach(), "soft": l_soft.detach(), "relation": l_re.detach()}
        return Loss(weighted_mean(rows), terms["clip"], {name: term.mean() for name, term in terms.items()})

    def _mean_text(self, tokens: Tensor, pairs: int) -> Tensor:
        """(b·K, L) -> (b, D): the twin's mean over the captions of each pair, unit rows."""
        texts = self.twin.encode_text(tokens)
        return F.normalize(texts.view(pairs, -1, texts.shape[1]).mean(dim=1), dim=1)

    def _guide(self, features: Tensor) -> Similarity:
        """Similarity of pairs by vectors (b, d), or by tokens or regions (b, P, d), of this rank."""
        kind = Tokens if features.ndim == 3 else Pooled
        return kind.gathered(features, scale=1 / self.options.tau_guide)

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        if self.options.symmetric or batch_size < 2:
            return None
        among_all, among_others = (math.log(n) + math.log(captions) / 2 for n in (batch_size, batch_size - 1))
        level: float = (self.options.soft + self.options.clip) * among_all + self.options.relation * among_others
        return level

    def after_step(self, model: DualEncoder) -> None:
        if hasattr(self, "twin"):
            self.twin.follow(model)
