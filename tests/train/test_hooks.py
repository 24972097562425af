"""What a method hangs onto a run: parts built from the model, observations without gradient, a step after the step."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from run_states import assert_same, state
from safetensors.torch import load_file
from torch import Tensor
from twinned import Twinned, TwinnedOptions

from truepair.config import LogConfig, OptimConfig, RunConfig, to_toml
from truepair.methods import METHODS
from truepair.methods.base import Features, Inputs, Loss, Method, Pairs
from truepair.models import DualEncoder, create
from truepair.train import train
from truepair.train.setup import assemble
from truepair.train.step import Trainee, forward_backward

B, K = 10, 2
LOG = LogConfig(every=1, keep_checkpoints=100)
Make = Callable[..., RunConfig]
Lines = Callable[[Path], list[dict[str, Any]]]
SCRIPT = """
import sys, torch
from truepair.config import from_toml
from truepair.methods import METHODS
from truepair.train import train
from twinned import Twinned
METHODS["twinned"] = Twinned
torch.set_num_threads(1)
for file in sys.argv[1:]:
    train(from_toml(file))
"""


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "twinned", Twinned)


def batch() -> tuple[Inputs, Pairs]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, B, 3, 32, 32), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(1, 40_000, (B * K, 8), generator=draw)
    tokens[:, 5], tokens[:, 6:] = 49_407, 0
    return Inputs(images, tokens), Pairs(torch.arange(B), torch.rand(B, generator=draw), {}, 0.0, 1)


def bound(method: Method) -> Trainee:
    torch.manual_seed(0)
    model = create("truepair-test")
    method.bind(model, None, None)
    return Trainee(model, method)


@pytest.mark.parametrize("parts", [2, 4, 10])
def test_observations_are_the_same_in_parts_and_made_once(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # towers that compute in float64 to their ends
    losses, gradients = [], []
    for count in (1, parts):
        trainee = bound(Twinned(TwinnedOptions())).double()
        losses.append(forward_backward(trainee, *batch(), micro_batches=count, precision=nullcontext()))
        gradients.append({name: p.grad for name, p in trainee.named_parameters() if p.requires_grad})
        assert trainee.method.observed == B
        assert all(p.grad is None for p in trainee.method.twin.parameters())
    assert torch.allclose(losses[0].per_pair, losses[1].per_pair, rtol=0, atol=1e-9)
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.allclose(gradient, gradients[1][name], rtol=0, atol=1e-9), name
    assert gradients[0]["method.head.weight"].any()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_name_that_embed_and_observe_both_use_is_refused(parts: int) -> None:
    class Torn(Twinned):
        def observe(self, model: DualEncoder, inputs: Inputs) -> dict[str, Tensor]:
            return {"guess": inputs.images}

    with pytest.raises(ValueError, match="two of embed, observe and fuse return guess"):
        forward_backward(bound(Torn(TwinnedOptions())), *batch(), micro_batches=parts, precision=nullcontext())


def test_a_method_observes_and_binds_nothing_unless_it_says_so() -> None:
    class Plain(Method):
        Options = TwinnedOptions

        def loss(self, features: Features, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Loss:
            assert features.extra == {}
            return Loss(features.image.sum(), features.image.detach().sum(dim=1))

    trainee = bound(Plain(TwinnedOptions()))
    assert not list(trainee.method.parameters())
    forward_backward(trainee, *batch(), micro_batches=1, precision=nullcontext())


def test_a_job_trains_the_model_and_the_head_but_not_the_twin(run_config: Make) -> None:
    job = assemble(run_config(method="twinned"), torch.device("cpu"), resume=False)
    method: Any = job.method
    trained = {id(p) for group in job.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in method.head.parameters()} <= trained
    assert {id(p) for p in job.model.parameters()} <= trained
    assert not {id(p) for p in method.twin.parameters()} & trained
    assert {id(p) for p in job.trainee.shared()} == {id(job.model.clip.logit_scale), *map(id, method.head.parameters())}
    weight = method.twin.towers.clip.visual.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_what_a_method_needs_may_depend_on_its_options(run_config: Make) -> None:
    for captions in (1, 3):
        config = run_config(method="twinned", options={"captions": captions})
        assert assemble(config, torch.device("cpu"), resume=True).source.captions == captions


def test_a_twins_towers_are_compiled_as_the_models(run_config: Make) -> None:
    job = assemble(run_config(method="twinned", compile=True), torch.device("cpu"), resume=False)
    for towers in (job.model, job.method.twin.towers):
        assert towers.clip.visual._compiled_call_impl is not None
        assert towers.clip.text._compiled_call_impl is not None


def test_a_run_with_a_twin_goes_on_bit_identical(
    run_config: Make, metrics: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config("whole", method="twinned", checkpoint_steps=10, log=LOG)
    train(config)
    said = re.search(r"\(([\d.]+) M parameters\)", " ".join(capsys.readouterr().err.split()))
    model = create("truepair-test")
    trained = sum(p.numel() for p in model.parameters()) + 32 * 32 + 32
    assert said is not None and said[1] == f"{trained / 1e6:.1f}"

    whole, torn = Path(config.out), Path(run_config("torn").out)
    shutil.copytree(whole, torn)
    for late in ("step-00000020", "step-00000024"):
        shutil.rmtree(torn / "checkpoints" / late)
    train(run_config("torn", method="twinned", checkpoint_steps=10, log=LOG), resume=True)
    end = state(whole)
    assert_same(end, state(torn), atol=0)
    assert metrics(whole) == metrics(torn)
    assert end["method.twin._extra_state"] == 24
    student, twin = end["visual.conv1.weight"], end["method.twin.towers.clip.visual.conv1.weight"]
    start = torch.load(whole / "checkpoints/step-00000010/state.pt", weights_only=True)["method"]
    assert not torch.allclose(student, twin, atol=1e-4)
    assert not torch.allclose(start["twin.towers.clip.visual.conv1.weight"], twin, atol=1e-4)
    assert not any(name.startswith("method") for name in load_file(next(whole.glob("checkpoints/*/*.safetensors"))))


def test_two_ranks_have_the_twin_that_one_has(run_config: Make, tmp_path: Path, metrics: Lines) -> None:
    def config(name: str, parts: int) -> RunConfig:
        optim = OptimConfig(accumulation=parts)
        return run_config(name, method="twinned", epochs=1, log=LOG, lr=1e-3, optim=optim)

    configs = [config("two", 1), config("two-cut", 3)]
    for made in configs:
        (tmp_path / f"{Path(made.out).name}.toml").write_text(to_toml(made))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    files = [str(tmp_path / f"{Path(made.out).name}.toml") for made in configs]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, *files], env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    train(config("one", 1))
    one = Path(config("one", 1).out)
    for made in configs:
        assert_same(state(one), state(Path(made.out)), atol=1e-4)
        lines = [[line for line in metrics(run) if line["kind"] == "train"] for run in (one, Path(made.out))]
        for wanted, found in zip(*lines, strict=True):
            assert found["missed"] == pytest.approx(wanted["missed"], rel=1e-3)
