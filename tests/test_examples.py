"""What is shown to be copied runs: the examples, the blocks of the loss's page, the method that is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from truepair.losses import reference, softmax_pairs

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def python_blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_at_most_seventy_lines(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 70


def test_a_plain_open_clip_step_trains_with_finite_losses() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "open_clip_step.py"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    losses = [float(found) for found in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 5
    assert all(0 < loss < 10 for loss in losses)  # ln 32 = 3.5 is a guess's


def run_block(place: int) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "block"}
    exec(python_blocks("losses.md")[place], names)
    return names


def test_the_first_block_of_the_pairwise_loss_makes_losses_of_all_pairs() -> None:
    names = run_block(0)
    assert names["i2t"].shape == names["t2i"].shape == (8,)
    assert names["loss"].isfinite()


@pytest.mark.parametrize("captions", [1, 3])
def test_the_target_of_ones_own_is_the_matrix_that_its_text_says(captions: int) -> None:
    names = run_block(1)
    assert names["image"].grad.isfinite().all()
    torch.manual_seed(0)
    w = torch.tensor([0.0, 0.3, 1.0])
    image, text = (normalize(torch.randn(n, 4), dim=1) for n in (3, 3 * captions))
    own = reference.own_pairs(3, 3 * captions)
    q = torch.where(own, (1 - w[:, None]) / captions, w[:, None] / (2 * captions))
    q_t = torch.where(own.T, 1 - w.repeat_interleave(captions)[:, None], w.repeat_interleave(captions)[:, None] / 2)
    target, logits = names["Doubted"](w), 10.0 * image @ text.T
    i2t, t2i = softmax_pairs(image, text, torch.tensor(10.0), target, target)
    torch.testing.assert_close(i2t, reference.cross_entropy(logits, q))
    torch.testing.assert_close(t2i, reference.cross_entropy(logits.T, q_t))


def test_the_method_that_is_printed_is_the_files() -> None:
    (printed,) = (block for block in python_blocks("methods.md") if "class Gate" in block)
    head, body = printed.rstrip().split("\n\n")
    code = (ROOT / "truepair" / "methods" / "gate.py").read_text(encoding="utf-8")
    assert code.rstrip().endswith(body)
    assert all(line in code.splitlines() for line in head.splitlines())
