"""What two runs must share to be the same: the tensors and numbers of their last checkpoints."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def state(run: Path) -> dict[str, Any]:
    """Weights of the model and of the method in the last checkpoint: towers, fusion encoder, twin, queue."""
    last = sorted(run.glob("checkpoints/step-*"))[-1]
    method = torch.load(last / "state.pt", weights_only=True)["method"]
    return load_file(last / "open_clip_model.safetensors") | {f"method.{name}": value for name, value in method.items()}


def assert_same(one: dict[str, Any], other: dict[str, Any], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert torch.allclose(value, other[name], rtol=0, atol=atol), name
        else:
            assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name
