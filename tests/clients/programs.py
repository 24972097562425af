"""How these tests run programs: foreign ones that are installed somewhere, and truepair's own verbs."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from truepair.cli import main

WHERE = "TRUEPAIR_CLIENTS"  # the environment variable that names the virtual environment of the foreign programs
PATIENCE = 900  # seconds; their imports alone take long on a busy machine
SETTINGS = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "NO_PROXY": "*", "no_proxy": "*"}


def needed(name: str) -> str:
    """The path of an installed program; without it the test is skipped, or fails where WHERE says it is there."""
    environment = os.environ.get(WHERE, "")
    folders = [Path(environment) / "bin"] if environment else [Path(sys.executable).parent, *os.get_exec_path()]
    path = shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if path is None and environment:
        pytest.fail(f"{WHERE}={environment} has no bin/{name}; docs/clients.md says how to make it")
    if path is None:
        pytest.skip(f"{name} is not installed; type: make clients (or {WHERE}=VENV pytest -m slow tests/clients)")
    return path


def foreign(name: str, *argv: str) -> None:
    """Run a foreign program to its end; with what it said, the test fails if it failed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | SETTINGS
    command = [needed(name), *argv]
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # a pipe would wait for its children too
        done = subprocess.run(command, stdout=said, stderr=said, env=environment, timeout=PATIENCE, check=False)
        said.seek(0)
        assert done.returncode == 0, said.read()[-4000:]


def truepair(*argv: str) -> dict[str, Any]:
    """Run a verb as on the command line; gives the JSON object that it prints last."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        main([*argv, "--json"])
    assert ended.value.code == 0
    result: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
    return result
