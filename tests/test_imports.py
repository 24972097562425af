"""What is asked of a part costs no more than the part: importing one does not drag the others in."""

import subprocess
import sys
from pathlib import Path

import pytest

LOSSES = Path(__file__).parents[1] / "truepair" / "losses"


def loaded(module: str) -> set[str]:
    """Top-level modules that importing `module` in a fresh interpreter brings in."""
    code = f"import {module}, sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["truepair.cli", "truepair.pairs.table", "truepair.pairs.index", "truepair.bench.summary"]
)
def test_help_tables_indexing_and_tables_of_results_do_without_torch(module: str) -> None:
    assert not loaded(module) & {"torch", "open_clip", "matplotlib"}


def test_the_losses_stand_alone() -> None:
    rooms = sorted(file.stem for file in LOSSES.glob("*.py") if file.stem != "__init__")
    assert "assignment" in rooms
    every = ", ".join(["truepair.losses", *(f"truepair.losses.{room}" for room in rooms)])
    assert not loaded(every) & {"pyarrow", "rich", "matplotlib", "tyro", "open_clip"}
