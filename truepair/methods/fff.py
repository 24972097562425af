"""FFF: false negatives become positives, several captions an image (Bulat et al., CVPR 2024, arXiv 2405.10286)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.losses import BinaryCrossEntropy, Pooled, all_gather, pairwise_losses, row_tiles, weighted_mean
from truepair.losses.assignment import Assignment, Ignored, Mined, mine
from truepair.methods.base import Features, Inputs, Loss, Method, Needs, Pairs, feature_column
from truepair.models.dual import DualEncoder
from truepair.models.twin import Twin
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable

SAMPLE = 256  # pairs, each with each other: those whose similarities estimate a quantile, each step (ours)
KEEP = 0.9  # of its former value that a running quantile keeps (ours)
SUSPICIOUS = 0.05  # share of all other pairs, found similar enough, that is no mining any more (METHODS.md §3)
GAP = 0.05  # cosine: own captions must be so much more similar than others', or nothing can be mined (ours)
MOST = 0.75  # share of own captions that may be ignored without a word (ours)
NUMBERS = ("p_it", "p_it_low", "p_ii", "p_tt", "p_own")


@dataclass(frozen=True)
class FffOptions:
    """Options of FFF; the provenance of each default stands beside it (docs/fff.md)."""

    thresholds: Literal["quantile", "absolute"] = "quantile"  # what the next four numbers are; ours
    p_it: float = 0.9999  # p1, image-text similarity that makes a positive; ours
    p_it_low: float = 0.99  # p1', the one that needs p_ii beside it; ours
    p_ii: float = 0.9999  # p2, image-image similarity; ours
    p_tt: float = 0.9999  # p3, text-text similarity; ours
    p_own: float = 0.95  # own captions less similar than this share of other pairs' are ignored; 0: none; ours
    cap: int = 5  # new positives a row, the most similar; ours
    warmup_epochs: float = 3.0  # epochs without new positives; ours
    similarity: Literal["twin", "student", "columns"] = "twin"  # whose features are compared; ours
    image_features: str = ""  # for "columns": the table's feature column of images (truepair embed)
    text_features: str = ""  # for "columns": of texts, by the same dual encoder
    momentum: float = 0.995  # of the twin; NEVER's and ALBEF's code
    image_truth: str = ""  # numeric column of what an image shows (negative: unknown); only to count with
    caption_truth: str = ""  # of what its captions say; after truepair corrupt that is IMAGE_TRUTH@caption_from

    def __post_init__(self) -> None:
        for name in NUMBERS:
            low = 0 if self.thresholds == "quantile" or name == "p_own" else -1
            if not low <= getattr(self, name) <= 1:
                raise UserError(f"fff's {name} {getattr(self, name)} makes no sense; it is from {low} to 1")
        if self.cap < 1 or self.warmup_epochs < 0:
            raise UserError(f"fff's cap {self.cap} must be 1 or more, warmup_epochs {self.warmup_epochs} 0 or more")
        if {bool(self.image_features), bool(self.text_features)} != {self.similarity == "columns"}:
            raise UserError("fff needs image_features and text_features for similarity columns, and for no other")
        if bool(self.image_truth) != bool(self.caption_truth):
            raise UserError("fff counts with image_truth and caption_truth together; give both or neither")


class Fff(Method):
    """L = 1/N Σ_ij softplus(M_ij·(-S_ij/τ + b)), M = +1 for own and found captions, -1 for all others (§3).

    b is learnt (minus the model's logit bias). M is made of similarities without gradient. The noise model is given the
    loss of each pair with own captions alone, SigLIP's, which nothing found can lower.
    """

    Options = FffOptions
    running: Tensor  # (5,) the similarities that the quantiles stand for

    def __init__(self, options: FffOptions) -> None:
        super().__init__(options)
        columns = (options.image_features, options.text_features, options.image_truth, options.caption_truth)
        self.needs = Needs(
            columns=tuple(dict.fromkeys(name for name in columns if name)),
            init_scale=2.302585,  # ln 10: τ = 0.1 (§3)
            init_bias="negatives",
            apart=False,
        )
        self.register_buffer("running", torch.full((len(NUMBERS),), torch.nan))

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        if self.options.similarity == "twin":
            self.twin = Twin(model, self.options.momentum)

    def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
        if self.options.similarity != "twin":
            return {}
        return {"x": self.twin.encode_image(inputs.images[0]), "t": self.twin.encode_text(inputs.tokens)}

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        options, n = self.options, len(features.image)
        captions = len(features.text) // n
        x, t = self._compared(features, pairs)  # (n, d), (n·K, d) or (n, d)
        x, t = all_gather(x), all_gather(t)
        mean_t = t.view(len(x), -1, t.shape[1]).mean(dim=1)  # products of means are S_tt's means over K x K blocks
        s_it, s_ii, s_tt = Pooled(x, t), Pooled(x, x), Pooled(mean_t, mean_t)
        exact = torch.promote_types(features.image.dtype, torch.float32)
        *p, p_own = self._thresholds(x, t, mean_t).to(exact)

        target = Assignment(s_it, s_ii, s_tt, torch.stack(p), all_gather(pairs.captions).view(len(x), -1))
        ignored, logs = None, self._idle(x.device)
        if pairs.epoch >= options.warmup_epochs:
            own = torch.linalg.vecdot(x.repeat_interleave(len(t) // len(x), dim=0), t)  # S_it of own captions
            gap = own.mean() - x.mean(dim=0) @ t.mean(dim=0)
            p_own = p_own.masked_fill(gap < GAP, -torch.inf)  # nothing is known of them yet
            target, mined = mine(target, row_tiles(n, 1, captions, x.device, exact), n, options.cap, self._truth(pairs))
            ignored = Ignored(s_it, p_own) if options.p_own else None
            logs |= _counts(mined, captions * (len(x) - 1))
            logs |= {"mining": torch.ones_like(gap), "own_gap": gap}
            logs |= {"ignored": (own < p_own).float().mean()} if options.p_own else {}
        objectives = [BinaryCrossEntropy(target, ignored), BinaryCrossEntropy()]  # the second is SigLIP's
        (rows, plain), _ = pairwise_losses(features.image, features.text, scale, bias, rows=objectives)  # (n,) each
        return Loss(weighted_mean(rows), plain.detach(), logs)

    def complaint(self, figures: dict[str, float]) -> str | None:
        if not figures.get("mining"):
            return None
        if figures["own_gap"] < GAP:
            return (
                f"own captions are only {figures['own_gap']:.3f} more similar than others': the features that are "
                "compared have collapsed, or have not learnt yet, and what they find is chance (no own caption is "
                f"ignored meanwhile). {self._remedy()}"
            )
        if figures.get("ignored", 0.0) > MOST:
            return (
                f"{figures['ignored']:.0%} of all own captions are left out of the loss, as they are less alike than "
                f"{self.options.p_own:.0%} of other pairs. Lower --options.p-own, or: {self._remedy()}"
            )
        if figures["found_share"] > SUSPICIOUS:
            return (
                f"{figures['found_share']:.0%} of all other pairs are similar enough to be positives; from there "
                "everything soon looks like everything. Raise --options.p-it, p-ii and p-tt, or begin later "
                "(--options.warmup-epochs)"
            )
        return None

    def chance_loss(self, batch_size: int, captions: int) -> float | None:
        return None

    def after_step(self, model: DualEncoder) -> None:
        if self.options.similarity == "twin":
            self.twin.follow(model)

    def _remedy(self) -> str:
        if self.options.similarity == "columns":
            return "Compare by features of a better dual encoder (truepair embed)"
        return "Begin later (--options.warmup-epochs), or compare by stored features (--options.similarity columns)"

    def _truth(self, pairs: Pairs) -> tuple[Tensor, Tensor] | None:
        """What the images of the global batch show and their captions say, where the table knows."""
        if not self.options.image_truth:
            return None
        return all_gather(pairs.columns[self.options.image_truth]), all_gather(
            pairs.columns[self.options.caption_truth]
        )

    def _idle(self, device: torch.device) -> dict[str, Tensor]:
        """The figures of a step that mines nothing."""
        names = ["mining", "found_share", "new_positives", "same_text", "own_gap"]
        names += ["ignored"] * bool(self.options.p_own) + ["new_true", "false_negatives"] * bool(
            self.options.image_truth
        )
        return dict.fromkeys(names, torch.zeros((), device=device))

    def _compared(self, features: Features, pairs: Pairs) -> tuple[Tensor, Tensor]:
        match self.options.similarity:
            case "twin":
                return features.extra["x"], features.extra["t"]
            case "student":
                return features.image.detach(), features.text.detach()
            case _:
                names = self.options.image_features, self.options.text_features
                x, t = (feature_column(pairs, name, (2,)) for name in names)
                if x.shape[1] != t.shape[1]:
                    raise UserError(
                        f"columns {names[0]!r} and {names[1]!r} have {x.shape[1]} and {t.shape[1]} dimensions; fff "
                        "compares images with texts, so both must come from one dual encoder"
                    )
                return x, t

    @torch.no_grad()
    def _thresholds(self, x: Tensor, t: Tensor, mean_t: Tensor) -> Tensor:
        """(5,) similarities: running quantiles of those between different pairs of the global batch, or four given."""
        wanted = torch.tensor([getattr(self.options, name) for name in NUMBERS], device=x.device)
        if len(x) < 2:
            return wanted
        few = torch.arange(min(SAMPLE, len(x)), device=x.device)
        at, k = few * len(x) // len(few), len(t) // len(x)  # pairs of all ranks, the same on every rank
        caption = at * k + few % k  # each of the K of as many pairs
        different = ~torch.eye(len(at), dtype=torch.bool, device=x.device)
        x, mean_t = x[at], mean_t[at]
        it, ii, tt = ((a @ b.T)[different] for a, b in ((x, t[caption]), (x, x), (mean_t, mean_t)))
        now = torch.stack(
            [sample.float().quantile(q.clamp(0, 1)) for sample, q in zip((it, it, ii, tt, it), wanted, strict=True)]
        )
        self.running.copy_(torch.where(self.running.isnan(), now, KEEP * self.running + (1 - KEEP) * now))
        return torch.cat([wanted[:4], self.running[4:]]) if self.options.thresholds == "absolute" else self.running


def _counts(mined: Mined, others: int) -> dict[str, Tensor]:
    """Means over this rank's rows."""
    counts = {"new_positives": mined.new.mean(), "found_share": mined.found.mean() / max(others, 1)}
    counts["same_text"] = mined.same_text.mean()
    if mined.true is not None and mined.missing is not None:
        counts |= {"new_true": mined.true.mean(), "false_negatives": mined.missing.mean()}
    return counts
