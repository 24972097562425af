"""A tiny run with a captioner of random weights: its live modules, and its folder as training leaves one."""

from pathlib import Path

import torch

from truepair.config import RunConfig, to_toml
from truepair.models.captioner import ConceptCaptioner, used_tokens
from truepair.models.concepts import ConceptBank
from truepair.models.dual import DualEncoder, create, save_local_dir
from truepair.models.run_captioner import RunCaptioner

CONCEPTS = ["square", "circle", "star", "cross", "triangle", "ring"]
CAPTIONS = [["a small red square above a large green circle"], ["a blue star beside a yellow cross"]]
SHOWN = 3  # concepts an image


def live_modules(name: str = "truepair-test") -> tuple[DualEncoder, ConceptCaptioner, ConceptBank]:
    """Towers, captioner and concepts, all in training state."""
    torch.manual_seed(0)
    model = create(name)
    captioner = ConceptCaptioner.build(
        model, used_tokens(model.tokenizer, CAPTIONS), CONCEPTS, layers=1, width=16, heads=2
    )
    torch.nn.init.normal_(captioner.decoder.lm_head.weight)  # else every image gets the same captions
    bank = ConceptBank(CONCEPTS, model.config["embed_dim"])
    bank.refresh(model)
    return model.train(), captioner.train(), bank.train()


def live_captioner() -> RunCaptioner:
    """A captioner of modules that are being trained."""
    return RunCaptioner(*live_modules(), SHOWN)


def save_run(folder: Path, captioner: RunCaptioner, *, step: int = 24, method: str = "nlip") -> Path:
    """A run's folder whose newest checkpoint is of `step`."""
    saved = folder / "checkpoints" / f"step-{step:08d}"
    save_local_dir(captioner.towers, saved)
    parts = torch.nn.ModuleDict(
        {"captioner": captioner.captioner, "bank": captioner.bank, "twin": torch.nn.Linear(2, 2)}
    )
    torch.save({"optimizer": {}, "method": parts.state_dict()}, saved / "state.pt")
    config = RunConfig(method=method, options={"concepts_per_image": captioner.concepts_per_image})
    (folder / "run.toml").write_text(to_toml(config))
    return folder
