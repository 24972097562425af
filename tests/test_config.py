"""A run's configuration: to TOML and back, with every wrong entry named."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truepair.config import AugmentConfig, OptimConfig, PairsConfig, RunConfig, from_toml, to_toml
from truepair.errors import UserError

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
numbers = st.floats(allow_nan=False)
runs = st.builds(
    RunConfig,
    data=text,
    out=text,
    epochs=st.integers(-(2**62), 2**62),
    lr=numbers,
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    compile=st.booleans(),
    pairs=st.builds(PairsConfig, unique=st.sampled_from(["none", "both"]), crop_scale=st.tuples(numbers, numbers)),
    augment=st.builds(AugmentConfig, flip=numbers),
    optim=st.builds(OptimConfig, eps=numbers),
    options=st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.one_of(text, numbers, st.booleans())),
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=runs)
def test_a_configuration_comes_back_from_toml_as_it_was(tmp_path: Path, config: RunConfig) -> None:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert from_toml(path) == config


def test_the_toml_is_complete() -> None:
    values = tomllib.loads(to_toml(RunConfig()))
    assert values.keys() == {field.name for field in dataclasses.fields(RunConfig)}
    assert values["optim"]["weight_decay"] == 0.2 and values["pairs"]["crop_scale"] == [0.9, 1.0]


def test_what_a_recipe_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('method = "gate"\nlr = 1\n[optim]\nwarmup = 7\n')
    config = from_toml(tmp_path / "recipe.toml")
    assert config == RunConfig(method="gate", lr=1.0, optim=OptimConfig(warmup=7))
    assert type(config.lr) is float


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("epoch = 3", "unknown entry 'epoch'; known are data, out, method"),
        ("__doc__ = 3", "unknown entry '__doc__'"),
        ("[optim]\nmomentum = 0.9", r"\[optim\]: unknown entry 'momentum'; known are beta1"),
        ('epochs = "3"', "epochs = '3' should be a int"),
        ("epochs = 3.0", "epochs = 3.0 should be a int"),
        ("epochs = true", "epochs = True should be a int"),
        ("lr = true", "lr = True should be a float"),
        ("compile = 1", "compile = 1 should be a bool"),
        ("data = 5", "data = 5 should be a str"),
        ("optim = 5", "optim = 5 should be a section"),
        ("options = 5", "options = 5 should be a section"),
        ('precision = "fp64"', "precision = 'fp64' should be one of auto, fp32, bf16"),
        ("[pairs]\ncrop_scale = 0.5", "crop_scale = 0.5 should be a list of 2"),
        ("[pairs]\ncrop_scale = [0.5]", r"crop_scale = \[0.5\] should be a list of 2"),
        ('[pairs]\ncrop_scale = ["a", "b"]', "crop_scale = 'a' should be a float"),
        ("epochs = ", "cannot be read"),
        ("epochs = 3\nepochs = 4", "cannot be read"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file(tmp_path: Path, toml: str, complaint: str) -> None:
    (tmp_path / "recipe.toml").write_text(toml)
    with pytest.raises(UserError, match=complaint) as caught:
        from_toml(tmp_path / "recipe.toml")
    assert "recipe.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", "noise.toml"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            from_toml(tmp_path / name)
