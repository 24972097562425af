"""What a run's checkpoint keeps beside the towers: the state of its method, read as plain tensors."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from truepair.errors import UserError, reason

STATE = "state.pt"
DAMAGE = (  # what torch raises for files that hold something else
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    pickle.PickleError,
    zipfile.BadZipFile,
)


def method_state(file: Path) -> dict[str, Any]:
    """The `state_dict` of a checkpoint's method; the optimiser's tensors beside it are mapped, not read.

    Raises UserError for a file that cannot be read or is no checkpoint of a run.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    state = saved.get("method") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{file} is no checkpoint of a run: it has no tensors by name under 'method'")
    return state


def part(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The `state_dict` of the sub-module `name`, {} if there is none of that name."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
