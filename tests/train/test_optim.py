"""What decays and what does not, and the learning rate of a step."""

import math

import pytest
import torch
from torch import nn

from truepair.config import OptimConfig
from truepair.models.dual import create
from truepair.train.optim import adamw, learning_rate, warmup_steps


def test_only_matrices_decay() -> None:
    model = create("truepair-test", init_bias=-10.0)
    model.clip.visual.conv1.weight.requires_grad_(False)
    optimizer = adamw(model, OptimConfig(weight_decay=0.3), 1e-3)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(parameter)] for parameter in plain["params"]}
    assert {"clip.logit_scale", "clip.logit_bias"} <= free
    assert all(names[id(p)].endswith(("weight", "embedding", "proj", "projection")) for p in decayed["params"])
    assert all("bias" in name or "ln_" in name or "class_embedding" in name or "scale" in name for name in free)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(plain["params"]) == len(trained) == len(names) - 1


def test_settings_reach_the_optimizer() -> None:
    optimizer = adamw(nn.Linear(2, 2), OptimConfig(beta1=0.8, beta2=0.7, eps=1e-3), 0.25)
    assert all((g["lr"], g["betas"], g["eps"]) == (0.25, (0.8, 0.7), 1e-3) for g in optimizer.param_groups)


def test_the_rate_warms_up_in_a_line_and_falls_as_a_cosine_to_zero() -> None:
    rates = [learning_rate(step, 110, 10, 2.0) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[60] == pytest.approx(1.0)
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[-1] < 0.001 and learning_rate(110, 110, 10, 2.0) == 0


def test_the_rate_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert learning_rate(step, 40, 0, 0.5) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "steps", "wanted"), [(-1, 500, 50), (-1, 10**6, 2000), (-1, 5, 0), (0, 500, 0), (70, 50, 70)]
)
def test_the_warm_up_is_a_tenth_of_the_run_and_bounded_unless_given(warmup: int, steps: int, wanted: int) -> None:
    assert warmup_steps(OptimConfig(warmup=warmup), steps) == wanted
