"""The momentum twin: a second pair of towers that follows the trained one slowly and is asked what it thinks."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from truepair.errors import UserError
from truepair.models import tokens as parts
from truepair.models.dual import DualEncoder


class Twin(nn.Module):
    """Momentum encoder: θ' ← m θ' + (1-m) θ after every step (MoCo, He et al. 2020, arXiv 1911.05722, eq. 2).

    A method builds one in `bind`, asks it in `observe`, calls `follow` in `after_step`; as the method's sub-module it
    is saved with it. It is never trained: no parameter requires a gradient, no output has a graph. Its logit scale and
    bias follow too and nobody uses them.

    It is always in evaluation mode (no dropout, no stochastic depth) but for batch norms, which use the statistics of
    the images they are given, as MoCo's do. Running statistics would be wrong twice: those of the first steps are far
    from the activations, and the student's belong to other weights than the twin's. So, as the student's, its image
    features depend a little on the micro-batch where a tower has batch norms. Asking it changes no state.

    Attributes:
        towers: the copy, with the student's names. heads: the copy of them, None without. steps: how many it followed.

    Args:
        model: the student at its start.
        momentum: m in [0, 1). 0.995 [NEVER's and ALBEF's code].
        ramp: m is min(momentum, (1+t)/(10+t)) after t steps, the form of TensorFlow's ExponentialMovingAverage [ours].
            0.995 alone has a time constant of 200 steps, in which the random start fades; the ramp's is a ninth of the
            steps done, and reaches 0.995 at step 1,790.
        heads: a module of the method that follows too (a fusion encoder). Ask the copy without graph: `Twin` gives the
            towers' answers only.

    Raises:
        UserError: momentum is not in [0, 1).
    """

    def __init__(
        self, model: DualEncoder, momentum: float = 0.995, ramp: bool = True, heads: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"the twin's momentum is {momentum}; it must be at least 0 and less than 1")
        self.momentum = momentum
        self.ramp = ramp
        self.steps = 0
        self.towers: DualEncoder = deepcopy(model, {id(model.tokenizer): model.tokenizer})
        self.heads: nn.Module | None = deepcopy(heads)
        self.requires_grad_(False)
        for norm in self._batch_norms():
            norm.track_running_stats = False  # in training mode: the batch's statistics, and none kept
        self.train()

    def train(self, mode: bool = True) -> "Twin":
        """Stays as it is, whatever `mode` the model around it is put in."""
        super().train(False)
        for norm in self._batch_norms():
            norm.training = True
        return self

    def get_extra_state(self) -> int:
        """`steps`, for state_dict."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """`steps`, from a state_dict."""
        self.steps = state

    @torch.no_grad()
    def follow(self, model: DualEncoder, heads: nn.Module | None = None) -> None:
        """One step after the student: every parameter nearer to it, buffers copied (running statistics: for whoever
        exports the twin). The same on all ranks, as the student's parameters are.

        heads: those of the student. Raises ValueError if the twin has heads and gets none, or the other way round.
        """
        if (heads is None) != (self.heads is None):
            raise ValueError("a twin follows heads if it was built with some, and only then")
        momentum = min(self.momentum, (1 + self.steps) / (10 + self.steps)) if self.ramp else self.momentum
        self._approach(self.towers, model, 1 - momentum)
        if heads is not None and self.heads is not None:
            self._approach(self.heads, heads, 1 - momentum)
        self.steps += 1

    @staticmethod
    def _approach(mine: nn.Module, theirs: nn.Module, share: float) -> None:
        torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), share)
        for buffer, other in zip(mine.buffers(), theirs.buffers(), strict=True):
            buffer.copy_(other)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(b, 3, S, S) uint8 -> (b, D) float32 unit rows without graph."""
        return self.towers.encode_image(images)

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) token ids -> (n, D) float32 unit rows without graph."""
        return self.towers.encode_text(tokens)

    @torch.no_grad()
    def encode_image_with_tokens(self, images: Tensor, *, prefix: bool = False) -> tuple[Tensor, Tensor]:
        """(b, 3, S, S) uint8 -> (b, D) and (b, P, w) float32 without graph, as `tokens.encode_image_with_tokens`."""
        return parts.encode_image_with_tokens(self.towers, images, prefix=prefix)

    @torch.no_grad()
    def encode_text_with_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L) token ids -> (n, D) and (n, L, w) float32 without graph, as `tokens.encode_text_with_tokens`."""
        return parts.encode_text_with_tokens(self.towers, tokens)

    @torch.no_grad()
    def image_tokens(self, images: Tensor) -> Tensor:
        """(b, 3, S, S) uint8 -> (b, P, w) float32 unit rows, one a patch. Raises as `models.image_tokens`."""
        return parts.image_tokens(self.towers, images)

    @torch.no_grad()
    def text_tokens(self, tokens: Tensor) -> Tensor:
        """(n, L) token ids -> (n, L, w) float32 unit rows, one a word, others zero. Raises as `models.text_tokens`."""
        return parts.text_tokens(self.towers, tokens)

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.towers.modules() if isinstance(module, _BatchNorm)]
