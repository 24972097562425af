"""NEVER: positive learning of believed pairs, negative of doubted ones (TPAMI 2024, 10.1109/TPAMI.2024.3462996)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.losses import (
    Complement,
    CrossEntropy,
    Objective,
    Once,
    Pooled,
    Sharpened,
    Softened,
    all_gather,
    pairwise_losses,
    weighted_mean,
)
from truepair.losses.distributed import rank, world_size
from truepair.losses.random import SPLIT, uniform
from truepair.methods.base import Features, Inputs, Loss, Method, Needs, Pairs
from truepair.methods.itm import match_probability, match_with_negatives, matching_loss
from truepair.methods.mlm import fill_gaps, masked_losses, with_gaps
from truepair.methods.parts import averaged, local_loss
from truepair.models.captioner import used_tokens
from truepair.models.dual import DualEncoder
from truepair.models.fusion import Fusion
from truepair.models.masked_text import reads_both_ways, reserve_mask
from truepair.models.matcher import open_fusion
from truepair.models.queue import Queue
from truepair.models.tokens import (
    attended,
    encode_image_with_tokens,
    encode_text_with_tokens,
    prefix_tokens,
    project_image_tokens,
    project_text_tokens,
    text_width,
    token_width,
    words,
)
from truepair.models.twin import Twin
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class NeverOptions:
    """Options of NEVER; the provenance of each default stands beside it (docs/never.md)."""

    ratio: float = 0.5  # share of a batch that may be called noisy in the last epoch, 0 in the first; 0: no split; code
    confidence: Literal["itm", "itc"] = "itm"  # c: P(match) of the fusion encoder; code. itc: p_ii of the softmax; ours
    selection: Literal["local", "global"] = "local"  # the split and ITM's negatives: of a rank; code. Of all; ours
    reduction: Literal["subset", "batch"] = "subset"  # PL and NL are means over their own subset; code. The batch; ours
    alpha: float = 0.4  # share of the twin in the targets of ITC and MLM; code
    ramp_epochs: float = 1.0  # in which alpha rises linearly from 0; code
    momentum: float = 0.995  # of the twin; code
    momentum_ramp: bool = False  # the twin follows faster in the first steps; ours, for runs of less than 2,000
    queue: int = 65_536  # pairs of former steps that are negatives too; 0: none; code
    queue_apart: bool = False  # leave out of the queue what has a row or a caption of the batch; ours
    itc: float = 1.0  # weight of the contrastive losses; code
    itm: float = 1.0  # weight of image-text matching; code
    mlm: float = 1.0  # weight of masked language modelling; code. itm 0 and mlm 0: no fusion encoder
    intra: bool = True  # image-image and text-text losses, student against twin; code
    local: bool = True  # the student's image against the twin's parts of images, its text against words; code
    masked: float = 0.15  # share of the words that MLM hides; code
    vocabulary: Literal["all", "used"] = "all"  # MLM answers with any token; code. With those of the captions; ours
    layers: int = 0  # of the fusion encoder; 0: as many as the text tower has; code (6 beside 6)
    heads: int = 0  # of the fusion encoder; 0: the text tower's; code (12)
    start: str = ""  # RUN, or its checkpoint, whose fusion encoder to go on from; --model local-dir:CHECKPOINT: towers

    def __post_init__(self) -> None:
        for name in ("ratio", "alpha", "masked"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"never's {name} is {getattr(self, name)}; it is a share, from 0 to 1")
        for name in ("ramp_epochs", "itc", "itm", "mlm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"never's {name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("queue", "layers", "heads"):
            if getattr(self, name) < 0:
                raise UserError(f"never's {name} is {getattr(self, name)}; it must be 0 or more")
        if self.itc + self.itm + self.mlm == 0:
            raise UserError("never's weights itc, itm and mlm are all 0; nothing would be learnt")
        if self.mlm and not self.masked:
            raise UserError("masked 0 hides no word from masked language modelling; without it: --options.mlm 0")
        if self.ratio and self.confidence == "itm" and not self.itm:
            raise UserError(
                "the split asks ITM how far to believe a pair (confidence itm), and ITM's weight itm is 0; take "
                "--options.confidence itc, or --options.ratio 0 for no split"
            )
        if not self.fuses and (self.layers or self.heads or self.masked != 0.15 or self.vocabulary != "all"):
            raise UserError("layers, heads, masked and vocabulary are of a fusion encoder; itm 0 and mlm 0 build none")
        if self.start and not self.fuses:
            raise UserError(f"never's start {self.start} brings a fusion encoder; with itm 0 and mlm 0 there is none")

    @property
    def fuses(self) -> bool:
        """Whether there is a fusion encoder."""
        return self.itm > 0 or self.mlm > 0


class Never(Method):
    """L = L_ITA + L_ITM + L_MLM (METHODS.md §1); f, g: the student's embeddings, F, G: the twin's with the queue's.

    L_ITA: mean of L_i2t, L_t2i, L_ii, L_tt and the two local losses.
    L_i2t = PL + NL: PL = -mean over the clean of Σ_j q_ij log p_ij, q the twin's smoothed targets; NL = -mean over the
        noisy of Σ_j (1-q̃_ij) log(1-p_ij), q̃ the sharpened ones, whose own pair is 1: it is not pulled.
    A pair is noisy if it is among the share t of least c, and then with probability 1-c; t rises over the epochs.
    """

    Options = NeverOptions
    vocabulary: Tensor  # (v,) ascending ids that MLM may ask for

    def __init__(self, options: NeverOptions) -> None:
        super().__init__(options)
        model = "truepair-fusion-tiny" if options.fuses else ""
        bounds = (2.0, 1000.0)  # τ in [0.001, 0.5]; code
        self.needs = Needs(views=2, most_captions=1, images=options.itm > 0, model=model, scale_bounds=bounds)

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        options = self.options
        if options.mlm:
            if not reads_both_ways(model):
                raise UserError(
                    f"the text tower of model {model.name!r} reads from left to right, and masked language modelling "
                    "looks both ways; take truepair-fusion-tiny, a model with text_cfg.no_causal_mask, or "
                    "--options.mlm 0"
                )
            self.mask = reserve_mask(model)
            self.register_buffer("vocabulary", self._vocabulary(model, captions), persistent=False)
        heads = None
        if options.fuses:
            sizes = {"layers": options.layers, "heads": options.heads}
            self.fusion = heads = Fusion.build(model, **sizes, itm=options.itm > 0, mlm=options.mlm > 0)
            if options.start:
                self._go_on(options.start)
        if options.local:
            self._try_parts(model)
        self.twin = Twin(model, options.momentum, options.momentum_ramp, heads if options.mlm else None)
        self.queue = Queue(options.queue, model.config["embed_dim"])

    def _vocabulary(self, model: DualEncoder, captions: StringLists) -> Tensor:
        """(v,) ascending ids that MLM may ask for: no special ones."""
        if self.options.vocabulary == "used":
            return used_tokens(model.tokenizer, captions)
        tokenizer: Any = getattr(model.tokenizer, "tokenizer", model.tokenizer)  # open_clip wraps those of transformers
        every = torch.arange(tokenizer.vocab_size)
        return every[~torch.isin(every, torch.tensor(tokenizer.all_special_ids))]

    def _go_on(self, run: str) -> None:
        found = open_fusion(run)
        mine, theirs = vars(self.fusion.shape), vars(found.shape)
        if other := [f"{name} {theirs[name]}, here {mine[name]}" for name in mine if mine[name] != theirs[name]]:
            raise UserError(f"the fusion encoder of {run} is of another shape than this run's: {'; '.join(other)}")
        self.fusion.load_state_dict(found.state_dict())

    @staticmethod
    def _try_parts(model: DualEncoder) -> None:
        """Raises UserError for towers whose parts cannot be compared with wholes."""
        try:
            project_image_tokens(model, torch.zeros(1, 1, token_width(model)))
            project_text_tokens(model, torch.zeros(1, 1, text_width(model)))
        except UserError as error:
            raise UserError(f"{error}; or go without the losses of parts: --options.no-local") from error

    def embed(self, model: DualEncoder, inputs: Inputs) -> Features:
        if not self.options.fuses:
            return super().embed(model, inputs)
        image, cells = encode_image_with_tokens(model, inputs.images[0], prefix=True)
        text, hidden = encode_text_with_tokens(model, inputs.tokens)
        extra = {"cells": cells, "hidden": hidden} if self.options.itm else {}
        if self.options.mlm:
            extra |= self._masked(model, inputs, cells)
        return Features(image, text, extra)

    def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
        """The twin's f_m, g_m (b, D) of the other view, its tokens `cells_m` (b, P, w) for MLM, its parts: of images
        `f_l` (b, 16, D), of words `g_l` (b, L, D), zeros where no word is; for ITM `attended` (b, L)."""
        seen = {"attended": attended(model, inputs.tokens)} if self.options.itm else {}
        twin = self.twin
        if not (self.options.local or self.options.mlm):
            return seen | {"f_m": twin.encode_image(inputs.images[1]), "g_m": twin.encode_text(inputs.tokens)}
        f_m, cells = twin.encode_image_with_tokens(inputs.images[1], prefix=True)
        g_m, hidden = twin.encode_text_with_tokens(inputs.tokens)
        seen |= {"f_m": f_m, "g_m": g_m}
        if self.options.mlm:
            seen["cells_m"] = cells
        if self.options.local:
            patches = cells[:, prefix_tokens(twin.towers) :]
            seen["f_l"] = project_image_tokens(twin.towers, averaged(patches))
            seen["g_l"] = project_text_tokens(twin.towers, hidden) * words(twin.towers, inputs.tokens)[..., None]
        return seen

    def _masked(self, model: DualEncoder, inputs: Inputs, cells: Tensor) -> dict[str, Tensor]:
        """Losses of MLM for each caption (`mlm.masked_losses`); cells: its picture, by the student."""
        whole = self.options.vocabulary == "all"
        how: dict[str, Any] = {"share": self.options.masked, "mask": self.mask, "vocabulary": self.vocabulary}
        gaps = with_gaps(model, inputs.tokens, inputs.seeds, whole=whole, **how)
        vocabulary = None if whole else self.vocabulary
        logits, taught = fill_gaps(model, self.fusion, gaps, cells, vocabulary), None
        if self.options.alpha:
            twin = self.twin.towers, cast(Fusion, self.twin.heads)
            with torch.no_grad():
                taught = fill_gaps(*twin, gaps, inputs.observed["cells_m"], vocabulary)
        return masked_losses(logits, taught, gaps)

    def fuse(self, features: Features, scale: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        if not self.options.itm:
            return {}
        twin = features.extra["f_m"], features.extra["g_m"]
        local = self.options.selection == "local"
        return match_with_negatives(self.fusion, features, twin, scale, pairs, local=local)

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        options, extra = self.options, features.extra
        f, g, f_m, g_m = features.image, features.text, extra["f_m"], extra["g_m"]
        alpha = options.alpha * min(1.0, pairs.epoch / options.ramp_epochs if options.ramp_epochs else 1.0)
        t = options.ratio * math.floor(pairs.epoch) / max(pairs.epochs - 1, 1)

        apart = (all_gather(pairs.rows), all_gather(pairs.captions)) if options.queue_apart else ()
        images, texts = self.queue.without(*apart)
        pl_i2t, own_i2t, nl_i2t = contrast(f, f_m, g_m, texts, scale, alpha, negative=t > 0)
        pl_t2i, own_t2i, nl_t2i = contrast(g, g_m, f_m, images, scale, alpha, negative=t > 0)
        batches = 1 + len(texts) / (len(f) * world_size())  # that a pair is compared with, while the queue fills
        per_pair = (own_i2t + own_t2i).detach() / 2 - math.log(batches)  # CLIP's loss of the pair, as among one

        if options.itm:
            itm, right = matching_loss(extra)
        by_itm = options.confidence == "itm" and options.itm > 0
        c = match_probability(extra["itm"]) if by_itm else ((-own_i2t).exp() + (-own_t2i).exp()).detach() / 2
        noisy = split(c, uniform(pairs.seeds, SPLIT), t, local=options.selection == "local")

        terms = [self._reduced(pl_i2t, nl_i2t, noisy), self._reduced(pl_t2i, nl_t2i, noisy)]
        if options.intra:
            terms += [weighted_mean(_intra(f, f_m, scale)), weighted_mean(_intra(g, g_m, scale))]
        if options.local:
            terms += [local_loss(f, extra["f_l"], scale), local_loss(g, extra["g_l"], scale)]
        itc = torch.stack(terms).mean()
        total, logs = options.itc * itc, {"itc": itc, "noisy": noisy.float().mean(), "ratio": itc.new_tensor(t)}
        if options.itm:
            total = total + options.itm * itm
            logs |= {"itm": itm, "itm_accuracy": right}
        if options.mlm:
            gaps = extra["gaps"].float()
            mlm = weighted_mean((1 - alpha) * extra["mlm"] + alpha * extra["mlm_taught"], gaps)
            total = total + options.mlm * mlm
            logs |= {"mlm": mlm, "mlm_accuracy": extra["hits"].sum() / gaps.sum().clamp_min(1)}
        self.queue.push(f_m, g_m, pairs.rows, pairs.captions)
        logs = {name: value.detach() for name, value in logs.items()}
        return Loss(total, per_pair, logs, confidence=c, noisy=noisy)

    def _reduced(self, positive: Tensor, negative: Tensor | None, noisy: Tensor) -> Tensor:
        """PL + NL of one direction, from the losses (B,) that each pair has in either; () as `weighted_mean`."""
        if negative is None:
            return weighted_mean(positive)
        if self.options.reduction == "batch":
            return weighted_mean(torch.where(noisy, negative, positive))
        return weighted_mean(positive, ~noisy) + weighted_mean(negative, noisy)

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        return None

    def after_step(self, model: DualEncoder) -> None:
        self.twin.follow(model, self.fusion if self.options.mlm else None)


def contrast(
    query: Tensor, twin: Tensor, keys: Tensor, queue: Tensor, scale: Tensor, alpha: float, *, negative: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """PL, -log p_ii and NL of every pair in one direction, (B,) each; NL only if `negative`.

    query (B, D): the student's. twin (B, D): the same side by the twin, whose softmax over the keys, at the student's
    temperature, is the target. keys (B, D), queue (Q, D): the other side by the twin.
    """
    guide = Once(Pooled.gathered(twin, keys, scale=scale.detach(), queue=queue))
    q = Softened(guide, alpha)
    objectives: list[Objective] = [CrossEntropy(q), CrossEntropy()]
    if negative:
        objectives.append(Complement(Sharpened(q)))
    rows, _ = pairwise_losses(query, keys, scale, rows=objectives, right_queue=queue)
    return rows[0], rows[1], rows[2] if negative else None


@torch.no_grad()
def split(confidence: Tensor, chance: Tensor, ratio: float, *, local: bool = True) -> Tensor:
    """(B,) bool, the pairs called noisy: of the int(B·ratio) least believed, each with probability 1-c.

    confidence: (B,) c in [0, 1]. chance: (B,) uniform in [0, 1), of each pair. local: the least believed of this
    rank's pairs, else of the global batch's.
    """
    c = confidence if local else all_gather(confidence)
    candidate = torch.zeros_like(c, dtype=torch.bool)
    candidate[torch.argsort(c, stable=True)[: int(len(c) * ratio)]] = True
    if not local:
        candidate = candidate[rank() * len(confidence) :][: len(confidence)]
    return candidate & (chance < 1 - confidence)


def _intra(query: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """-log p_ii of each sample's student among the twin's of the batch, (B,)."""
    ((loss,), _) = pairwise_losses(query, keys, scale, rows=[CrossEntropy()])
    return loss
