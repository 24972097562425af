"""What the command says: to people on stderr, to programs as one JSON line on stdout."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)  # paths and captions are no markup


def counting(what: str, total: int) -> Any:
    from truepair.train.logs import counting

    return counting(console, what, total)


def finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json and first_rank():
        print(json.dumps(_plain(result), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """A result in JSON's own types: paths as text, what is not a finite number as null."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def first_rank() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def fail(text: str) -> NoReturn:
    rank = "" if first_rank() else f" rank {os.environ['RANK']}:"
    print(f"truepair:{rank} {text}", file=sys.stderr)
    sys.exit(2)
