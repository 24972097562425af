"""The pages show commands that exist: every verb and every flag in them is one the command knows."""

import functools
import inspect
import re
from pathlib import Path

import pytest

from truepair.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
TEXTS |= {f"{verb} --help": inspect.cleandoc(kind.__doc__ or "") for verb, (kind, _) in VERBS.items()}
COMMAND = re.compile(r"(?:^\s*|`|-m )truepair (?P<verb>[a-z]\w*)(?P<rest>[^`\n#]*)", re.MULTILINE)
FLAG = re.compile(r"(?<!\S)\[?(--[a-z][\w.-]*)")


def commands(page: str) -> list[tuple[str, str]]:
    """Verb and rest of each command of a page, in code blocks (a backslash continues a line) and code spans."""
    return [(found["verb"], found["rest"]) for found in COMMAND.finditer(page.replace("\\\n", " "))]


@functools.cache
def flags_of(verb: str, method: str) -> frozenset[str]:
    """The flags that `truepair VERB --help` names."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.stdout.write", said.append)
        main([verb, *(["--method", method] if method else []), "--help"])
    return frozenset(re.findall(r"(?<!\S)--[a-z][\w.-]*", "".join(said)))


def stale(page: str) -> list[str]:
    """The verbs and flags of a page that the command does not know."""
    unknown = []
    for verb, rest in commands(page):
        if verb not in VERBS:
            unknown.append(f"truepair {verb}")
            continue
        method = re.search(r"--method ([a-z]\w*)", rest)
        known = flags_of(verb, method[1] if method else "")
        unknown += [f"truepair {verb} {flag}" for flag in FLAG.findall(rest) if flag not in known]
    return unknown


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_shows_no_verb_or_flag_that_is_not_there(text: str) -> None:
    assert not stale(text)


def test_stale_verbs_and_flags_are_found() -> None:
    assert stale("`truepair paint x`") == ["truepair paint"]
    assert stale("```\ntruepair index x --out y \\\n  --depth 3\n```") == ["truepair index --depth"]
    assert stale("`torchrun -m truepair train --method gate --options.power 2 --options.tau 1`") == [
        "truepair train --options.tau"
    ]
    assert commands(TEXTS["README.md"])
