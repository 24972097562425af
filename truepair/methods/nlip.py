"""NLIP: pairs believed as far as they are clean, captions completed (Huang et al., AAAI 2023, arXiv 2212.07086)."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.losses import all_gather, per_pair_mean, softmax_pairs, weighted_mean
from truepair.losses.distributed import world_size
from truepair.methods.base import Features, Inputs, Loss, Method, Needs, Pairs
from truepair.models.captioner import MOST_CONCEPTS, ConceptCaptioner, used_tokens
from truepair.models.concepts import ConceptBank, read_concepts, stored_names
from truepair.models.dual import DualEncoder
from truepair.models.likeness import Precision
from truepair.models.run_captioner import RunCaptioner
from truepair.models.tokens import encode_image_with_tokens
from truepair.pairs.columns import StringLists
from truepair.pairs.nouns import frequent_concepts
from truepair.pairs.table import PairTable

SAMPLE = 1_000_000  # rows whose captions the concepts are read from, evenly spaced (ours)
TEXTS = 4  # captions learnt for each concept before all concepts are embedded anew by the towers of then (ours)
LEAST = 1e-6  # loss [nats] that the log-odds form takes for nothing (ours)


@dataclass(frozen=True)
class NlipOptions:
    """Options of NLIP; the provenance of each default stands beside it (docs/nlip.md)."""

    smoothing: float = 0.5  # λ: w_i = λ·ε_i; 0: no harmonization; recalled
    form: Literal["smoothed", "log-odds"] = "smoothed"  # log-odds: its gradient dies in large batches
    captioning: float = 1.0  # weight of the captioner's loss; 0: no captioner; ours
    concepts_per_image: int = 10  # k, shown to the captioner; 0: none; recalled
    concepts: int = 10_000  # the most frequent nouns of the captions, at most so many; recalled
    concept_list: str = ""  # file of concepts, one a line, in place of the captions' nouns
    concept_column: str = ""  # column of `truepair concepts`: those it stored are shown, not what the towers find
    layers: int = 0  # of the captioner; 0: as many as the text tower has; ours
    width: int = 0  # of the captioner; 0: the text tower's; ours
    heads: int = 0  # of the captioner; 0: the text tower's; ours

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"nlip's smoothing (λ) is {self.smoothing}; it is from 0 to less than 1")
        if not 0 <= self.captioning < math.inf:
            raise UserError(f"nlip's captioning is {self.captioning}; the weight of a loss is 0 or more")
        for name in ("concepts_per_image", "layers", "width", "heads"):
            if getattr(self, name) < 0:
                raise UserError(f"nlip's {name} is {getattr(self, name)}; it must be 0 or more")
        if self.concept_list and not self.concepts_per_image:
            raise UserError("nlip's concept_list is for showing concepts, and concepts_per_image is 0")
        if self.concept_column and (self.concept_list or not self.concepts_per_image):
            raise UserError("nlip's concept_column brings its own list, and concepts_per_image must not be 0")
        if self.concepts_per_image > MOST_CONCEPTS:
            raise UserError(f"nlip's concepts_per_image is {self.concepts_per_image}; at most {MOST_CONCEPTS}")
        if self.concepts < 1:
            raise UserError(f"nlip's concepts are {self.concepts}; take 1 or more (none: concepts_per_image 0)")


class Nlip(Method):
    """L = L_ITC + L_LM (§2).

    L_ITC: CLIP's, its target 1-w_i on the own caption and w_i/(B-1) on each other, both directions; w_i = λ·ε_i, ε_i
        the noise model's p_noise.
    L_LM: -log p(caption | image tokens, concepts) a token, a caption weighted by 1-ε_i.

    A synthetic caption is doubted as the pair is that it was written for; it is no example for the captioner that wrote
    it, and takes no part in `per_pair`, which is CLIP's loss of the raw captions (all ours).
    """

    Options = NlipOptions

    def __init__(self, options: NlipOptions) -> None:
        super().__init__(options)
        self.needs = Needs(columns=(options.concept_column,) if options.concept_column else ())
        self.learnt = 0  # captions since the concepts were embedded

    def get_extra_state(self) -> int:
        """`learnt`, for state_dict."""
        return self.learnt

    def set_extra_state(self, state: int) -> None:
        """`learnt`, from a state_dict."""
        self.learnt = state

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        options = self.options
        if not options.captioning:
            return
        names = self._concepts(table, captions) if options.concepts_per_image else []
        self.bank = ConceptBank(names, model.config["embed_dim"])
        self.learnt = TEXTS * len(names)  # the first step embeds them
        self.captioner = ConceptCaptioner.build(
            model,
            used_tokens(model.tokenizer, captions),
            names,
            layers=options.layers,
            width=options.width,
            heads=options.heads,
        )

    def _concepts(self, table: PairTable, captions: StringLists) -> list[str]:
        options = self.options
        if options.concept_column:
            return stored_names(table, options.concept_column)
        if options.concept_list:
            return read_concepts(options.concept_list)
        step = -(-len(captions) // SAMPLE)
        some = captions if step == 1 else [captions[row] for row in range(0, len(captions), step)]
        names = frequent_concepts(some, most=options.concepts)
        if not names:
            raise UserError(
                "no noun stands in two of the captions; name concepts with --options.concept-list FILE, or do "
                "without: --options.concepts-per-image 0"
            )
        return names

    def embed(self, model: DualEncoder, inputs: Inputs) -> Features:
        if not self.options.captioning:
            return super().embed(model, inputs)
        image, tokens = encode_image_with_tokens(model, inputs.images[0])
        k, column = self.options.concepts_per_image, self.options.concept_column
        concepts = inputs.columns[column][:, :k].long() if column else self.bank.nearest(image.detach(), k)[1]  # (b, k)
        nll = self.captioner(tokens, inputs.tokens, concepts)  # (b·K,)
        return Features(image, model.encode_text(inputs.tokens), {"nll": nll})

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        x, t = features.image, features.text
        k = len(t) // len(x)
        raw = torch.ones(len(t), dtype=torch.bool, device=x.device) if pairs.synthetic is None else ~pairs.synthetic
        epsilon = pairs.p_noise  # (B,)
        w = self.options.smoothing * epsilon

        self.learnt += len(t) * world_size()
        i2t, t2i = softmax_pairs(x, t, scale)  # (B,), (B·K,) l of either direction
        own = scale * torch.linalg.vecdot(x.repeat_interleave(k, dim=0), t)  # (B·K,) s_ii
        every_x, every_t = all_gather(x), all_gather(t)
        if self.options.form == "log-odds":
            if k > 1:
                raise UserError("nlip's log-odds form knows one caption an image: --pairs.captions 1, or form smoothed")
            odds = per_pair_mean(log_odds(i2t, w, len(every_x)), log_odds(t2i, w, len(every_x)))
            itc = torch.where(w > 0, odds, per_pair_mean(i2t, t2i))  # a pair not doubted, or not yet, is CLIP's
        else:
            own_image, others = own.view(-1, k).mean(dim=1), max(len(every_x) - 1, 1)
            rest_image = (scale * x @ every_t.sum(dim=0) / k - own_image) / others  # (B,) mean of s_ij over j≠i
            rest_text = (scale * t @ every_x.sum(dim=0) - own) / others  # (B·K,)
            of_text = smoothed(t2i, own, rest_text, w.repeat_interleave(k))
            itc = per_pair_mean(smoothed(i2t, own_image, rest_image, w), of_text)

        logs = {"w": w.mean(), "itc": itc.detach().mean()}
        total = weighted_mean(itc)
        if self.options.captioning:
            nll = features.extra["nll"]
            total = total + self.options.captioning * weighted_mean(nll, (1 - epsilon).repeat_interleave(k) * raw)
            logs["nll"] = nll.detach().mean()
        if pairs.synthetic is not None:
            logs["synthetic"] = 1 - raw.float().mean()
        return Loss(total, _of_raw(i2t, t2i, own, raw.view(-1, k)), logs)

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        return None if self.options.captioning else super().chance_loss(batch_size, captions)

    def after_step(self, model: DualEncoder) -> None:
        live = self.options.captioning and not self.options.concept_column
        if live and self.learnt >= TEXTS * len(self.bank.names):
            self.bank.refresh(model)
            self.learnt = 0

    def writer(self, model: DualEncoder, *, name: str, step: int, precision: Precision) -> RunCaptioner | None:
        if not self.options.captioning:
            return None
        k, column = self.options.concepts_per_image, self.options.concept_column
        bank = deepcopy(self.bank)  # which the captioner embeds anew; a resumed run has the former features
        return RunCaptioner(*(model, self.captioner, bank, k), column=column, name=name, step=step, precision=precision)


def smoothed(loss: Tensor, own: Tensor, rest: Tensor, w: Tensor) -> Tensor:
    """-Σ_j q_ij log p_ij of each row i (n,), q its own column 1-w_i, each other w_i/(B-1).

    Since q sums to 1 that is l_i + w_i (s_ii - mean_j≠i s_ij), so it costs what CLIP does.
    loss: (n,) l_i = -log p_ii. own, rest: (n,) s_ii and the mean of s_ij over all other j, logits. w: (n,).
    """
    return loss + w * (own - rest)


def log_odds(loss: Tensor, w: Tensor, batch: int) -> Tensor:
    """-log[(1-w) e^s_ii / ((1-w) e^s_ii + w/(B-1) Σ_j≠i e^s_ij)] of each row i (n,); 0 where w_i is.

    Since Σ_j≠i e^s_ij = e^s_ii (e^l_i - 1), it is ln(1 + w/((1-w)(B-1)) (e^l_i - 1)).
    loss: (n,) l_i = -log p_ii. w: (n,) less than 1. batch: B.
    """
    loss = loss.clamp_min(LEAST)
    odds = w.log() - torch.log1p(-w) - math.log(max(batch - 1, 1))
    return F.softplus(odds + loss + torch.log(-torch.expm1(-loss)))  # ln(e^l - 1) without overflow


def _of_raw(i2t: Tensor, t2i: Tensor, own: Tensor, raw: Tensor) -> Tensor:
    """(B,) CLIP's loss of each pair's raw captions, raw (B, K); of all its captions where none is raw."""
    own, t2i = own.detach().view(raw.shape), t2i.detach().view(raw.shape)
    counted = torch.where(raw.any(dim=1, keepdim=True), raw, torch.ones_like(raw)).to(own.dtype)
    share = counted / counted.sum(dim=1, keepdim=True)
    i2t = i2t.detach() + own.mean(dim=1) - (share * own).sum(dim=1)  # the other captions stay among the negatives
    return (i2t + (share * t2i).sum(dim=1)) / 2
