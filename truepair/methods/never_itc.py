"""never-itc: NEVER's contrastive part on a plain dual encoder. An extension (ours), not the paper's method."""

from dataclasses import dataclass
from typing import Literal

from truepair.methods.never import Never, NeverOptions


@dataclass(frozen=True)
class NeverItcOptions(NeverOptions):
    """Options of NEVER, with the defaults of a run without fusion encoder (ours)."""

    confidence: Literal["itm", "itc"] = "itc"  # c: p_ii of the softmax; ours
    itm: float = 0.0  # no image-text matching
    mlm: float = 0.0  # no masked language modelling: no fusion encoder, nothing of it to set


class NeverItc(Never):
    """L = L_ITA of NEVER (METHODS.md §1), its split by c_i = p_ii, the mean of both directions' softmax."""

    Options = NeverItcOptions
