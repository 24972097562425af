"""What an error says is one line, and never nothing."""

import pytest

from truepair.errors import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such file\n  at 7"), "no such file"),
        (RuntimeError("Error(s) in loading X:\n\tsize mismatch for w\n\tand more"), "size mismatch for w"),
        (OSError("\n  \n gone \n"), "gone"),
        (RuntimeError("only a heading:\n"), "only a heading:"),
        (AssertionError(), "AssertionError"),
        (KeyError("method"), "'method'"),
        (FileNotFoundError(2, "No such file or directory", "run/x.toml"), "No such file or directory: run/x.toml"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("x" * 300), "x" * 200 + " …"),
    ],
)
def test_the_first_line_that_says_something_is_the_reason(error: Exception, said: str) -> None:
    assert reason(error) == said
