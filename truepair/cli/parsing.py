"""Flags to a dataclass, by tyro; what tyro says of wrong ones in a box, the command says in a line."""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from truepair.errors import UserError


def parsed(kind: type[Any], verb: str, argv: Sequence[str], about: str | None = None, default: Any = None) -> Any:
    """The dataclass `kind` from a verb's arguments; its docstring, or `about`, heads the verb's --help.

    Raises UserError, one line, for flags that are wrong, SystemExit after --help.
    """
    given = {} if default is None else {"default": default}
    text = inspect.cleandoc(about or kind.__doc__ or "")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = tyro.cli(kind, args=argv, prog=f"truepair {verb}", description=text, **given)
    except SystemExit as ended:
        if not ended.code:
            raise
        raise UserError(f"{one_line(said.getvalue())}; truepair {verb} --help tells the flags") from None
    sys.stderr.write(said.getvalue())  # warnings, if there were any
    return args


def one_line(box: str) -> str:
    """What tyro's box says is wrong, and the flag it thinks was meant; all of the text if there is no box."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:  # the first is the frame, with a title that the text repeats
        text = line.strip("│| ")
        if text.strip("─╰╯-+ "):
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    said = [" ".join(rows).replace(" (required)", ";").rstrip(".;") for rows in paragraphs if rows]
    wrong = [text for place, text in enumerate(said) if place == 0 or text.startswith("Unrecognized")]
    meant = [f"perhaps {flag[1]} was meant" for text in said if (flag := re.match(r"Perhaps.*?(--\S+)", text))]
    return "; ".join(wrong + meant) or " ".join(box.split())
