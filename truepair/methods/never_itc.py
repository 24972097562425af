"""never-itc: NEVER's contrastive part on a plain dual encoder. An extension (ours), not the paper's method."""

from dataclasses import dataclass
from typing import Literal

from truepair.methods.never import Never, NeverOptions


@dataclass(frozen=True)
class NeverItcOptions(NeverOptions):
    """Options of NEVER, with the defaults of a run without fusion encoder (ours)."""

    confidence: Literal["itm", "itc"] = "itc"
    itm: float = 0.0
    mlm: float = 0.0


class NeverItc(Never):
    """L = L_ITA of NEVER (METHODS.md §1), its split by c_i = p_ii, the mean of both directions' softmax."""

    Options = NeverItcOptions
