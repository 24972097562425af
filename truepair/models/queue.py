"""The momentum queue: features of the last pairs that a twin saw, as further negatives of the pairs at hand."""

from typing import Any

import torch
from torch import Tensor, nn

from truepair.errors import UserError
from truepair.losses.distributed import all_gather


class Queue(nn.Module):
    """The newest `size` pairs' features of both modalities, with the ids of their rows and captions.

    MoCo (He et al. 2020, arXiv 1911.05722, section 3.2); of both modalities as in ALBEF's code. Every rank holds the
    pairs of all. It starts empty and never shows what was not pushed (ALBEF's starts with random features; ours), so a
    run with fewer pairs than places has no invented negatives. As a method's sub-module it is saved with it; a run that
    is resumed with another number of ranks goes on with the same queue.

    Attributes:
        image, text: (size, D) float32. rows, captions: (size,) int64. filled: places in use. next: the place to write.

    Args:
        size: Q, pairs at most; 0: always empty. dim: D.

    Raises:
        UserError: size is negative.
    """

    image: Tensor
    text: Tensor
    rows: Tensor
    captions: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 0:
            raise UserError(f"a queue of {size} pairs cannot be; give 0 for none")
        self.size, self.filled, self.next = size, 0, 0
        features, ids = torch.zeros(size, dim), torch.zeros(size, dtype=torch.int64)
        for name, zeros in {"image": features, "text": features, "rows": ids, "captions": ids}.items():
            # not buffers, which DDP would send to all ranks every step
            self.register_parameter(name, nn.Parameter(zeros.clone(), requires_grad=False))

    def get_extra_state(self) -> dict[str, int]:
        """`filled` and `next`, for state_dict."""
        return {"filled": self.filled, "next": self.next}

    def set_extra_state(self, state: Any) -> None:
        """`filled` and `next`, from a state_dict. Raises UserError if they are not those of such a queue."""
        filled, place = (state.get(name) for name in ("filled", "next")) if isinstance(state, dict) else (None, None)
        if not isinstance(filled, int) or not isinstance(place, int):
            raise UserError("the checkpoint's queue does not say which of its places are filled")
        if not 0 <= filled <= self.size or not 0 <= place < max(self.size, 1):
            raise UserError(
                f"the checkpoint's queue has {filled} pairs and writes at {place}; this one has {self.size}"
            )
        self.filled, self.next = filled, place

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, rows: Tensor, captions: Tensor) -> None:
        """The pairs of this step, gathered over ranks in rank order, take the places of the oldest.

        image, text: (B, D) float32 of this rank; rows, captions: (B,) int64 ids. Every rank must push as many.
        """
        if not self.size:
            return
        given = [all_gather(x.detach())[-self.size :] for x in (image, text, rows, captions)]
        count = len(given[0])
        places = (self.next + torch.arange(count, device=self.rows.device)) % self.size
        for held, new in zip((self.image, self.text, self.rows, self.captions), given, strict=True):
            held[places] = new.to(held.dtype)
        self.next = (self.next + count) % self.size
        self.filled = min(self.filled + count, self.size)

    @torch.no_grad()
    def without(self, rows: Tensor | None = None, captions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Copies, (q, D) image and (q, D) text features held, in no particular order, q <= size.

        rows, captions: (m,) ids, of the global batch for the same answer on every rank; pairs that have one of them are
        left out, so that a pair, or another with its caption, is not its own negative.
        """
        image, text = self.image[: self.filled], self.text[: self.filled]
        if rows is None and captions is None:
            return image.clone(), text.clone()  # a loss may go backward through them after the next push
        kept = torch.ones(self.filled, dtype=torch.bool, device=image.device)
        for held, given in ((self.rows, rows), (self.captions, captions)):
            if given is not None:
                kept &= ~torch.isin(held[: self.filled], given)
        return image[kept], text[kept]
