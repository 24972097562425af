"""The methods: one paper, one file. `METHODS` is all there is to registering one."""

from truepair.errors import UserError
from truepair.methods.base import Method as Method
from truepair.methods.clip import Clip
from truepair.methods.fff import Fff
from truepair.methods.gate import Gate
from truepair.methods.never import Never
from truepair.methods.never_itc import NeverItc
from truepair.methods.nlip import Nlip
from truepair.methods.siglip import Siglip
from truepair.methods.softclip import Softclip

METHODS: dict[str, type[Method]] = {
    "clip": Clip,
    "siglip": Siglip,
    "gate": Gate,
    "softclip": Softclip,
    "fff": Fff,
    "nlip": Nlip,
    "never": Never,
    "never-itc": NeverItc,
}


def method_class(name: str) -> type[Method]:
    """The class of a method by its name on the command line; raises UserError for an unknown one."""
    if name not in METHODS:
        raise UserError(f"no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]
