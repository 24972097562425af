"""A tiny run with a fusion encoder of random weights: its live modules, and its folder as training leaves one."""

from pathlib import Path

import torch
from torch import nn

from truepair.config import RunConfig, to_toml
from truepair.models.dual import DualEncoder, create, save_local_dir
from truepair.models.fusion import Fusion
from truepair.models.matcher import Matcher


def live_matcher(model: str = "truepair-fusion-test", seed: int = 0, **shape: bool) -> Matcher:
    """Towers and a fusion encoder in training state, whose verdicts differ from pair to pair."""
    torch.manual_seed(seed)
    towers = create(model)
    fusion = Fusion.build(towers, layers=2, heads=2, **shape)
    with torch.no_grad():
        for name, weights in fusion.named_parameters():
            if "multihead_attn" in name and weights.ndim == 2:
                weights.mul_(4)  # else it hardly looks at the image
        if fusion.itm is not None:
            fusion.itm.weight.mul_(8)
    return Matcher(towers.train(), fusion.train())


def save_run(folder: Path, towers: DualEncoder, fusion: Fusion | None, *, step: int = 24) -> Path:
    """A run's folder whose newest checkpoint is of `step`."""
    saved = folder / "checkpoints" / f"step-{step:08d}"
    save_local_dir(towers, saved)
    parts = nn.ModuleDict({"twin": nn.Linear(2, 2)} | ({} if fusion is None else {"fusion": fusion}))
    torch.save({"optimizer": {}, "method": parts.state_dict()}, saved / "state.pt")
    (folder / "run.toml").write_text(to_toml(RunConfig(method="clip" if fusion is None else "never")))
    return folder
