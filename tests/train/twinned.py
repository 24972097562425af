"""A method that uses every hook: a twin and a head, built when the model is there, and something observed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from truepair.losses import per_pair_mean, softmax_rows, weighted_mean
from truepair.methods.base import Features, Inputs, Loss, Method, Needs, Pairs
from truepair.models import DualEncoder, Twin
from truepair.pairs.columns import StringLists
from truepair.pairs.table import PairTable


@dataclass(frozen=True)
class TwinnedOptions:
    """captions: K."""

    captions: int = 2


class Twinned(Method):
    """CLIP, and a head that guesses what the twin thinks of the image, weighted by the words of the first caption."""

    Options = TwinnedOptions

    def __init__(self, options: TwinnedOptions) -> None:
        super().__init__(options)
        self.needs = Needs(captions=options.captions)
        self.observed = 0  # pairs

    def bind(self, model: DualEncoder, table: PairTable, captions: StringLists) -> None:
        self.twin = Twin(model, 0.9)
        self.head = nn.Linear(model.config["embed_dim"], model.config["embed_dim"])

    def embed(self, model: DualEncoder, inputs: Inputs) -> Features:
        features = super().embed(model, inputs)
        features.extra = {"guess": self.head(features.image), "length": (inputs.tokens != 0).sum(dim=1)}
        return features

    def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.observed += inputs.images.shape[1]
        return {
            "twin": self.twin.encode_image(inputs.images[0]),
            "words": self.twin.text_tokens(inputs.tokens).any(dim=-1),
            "ids": inputs.tokens,
        }

    def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
        extra = features.extra
        assert extra["words"].dtype == torch.bool and extra["ids"].dtype == torch.int64
        assert not any(extra[name].requires_grad for name in ("twin", "words", "ids", "length"))
        assert torch.equal(extra["length"], (extra["ids"] != 0).sum(dim=1))
        words = extra["words"].view(len(features.image), -1, extra["words"].shape[1])[:, 0].sum(dim=1)
        missed = (extra["guess"] - extra["twin"]).square().sum(dim=1) * words
        i2t = softmax_rows(features.image, features.text, scale)
        t2i = softmax_rows(features.text, features.image, scale)
        rows = per_pair_mean(i2t, t2i) + missed
        return Loss(weighted_mean(rows, 1 - pairs.p_noise), rows.detach(), {"missed": missed.detach().mean()})

    def after_step(self, model: DualEncoder) -> None:
        self.twin.follow(model)
