"""Recipes are whole: each is a run that can be, says what it is, and cites pages that exist."""

import re
from pathlib import Path

import pytest

from truepair.config import filled, from_toml
from truepair.methods import method_class

ROOT = Path(__file__).parents[1]
RECIPES = [*sorted((ROOT / "recipes").glob("*.toml")), ROOT / "truepair" / "demo.toml"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_a_run_and_says_what_where_how_and_what_to_expect(recipe: Path) -> None:
    config, text = from_toml(recipe), recipe.read_text()
    filled(method_class(config.method).Options, config.options, recipe.name)
    for heading in ("What:", "Where:", "Command:", "Expected:"):
        assert heading in text
    if recipe.parent.name == "recipes":
        assert re.search(rf'^method = "{config.method}"$', text, re.MULTILINE)
    for cited in re.findall(r"[\w/.-]+\.(?:md|toml)\b", text):
        assert (ROOT / cited).exists(), cited
