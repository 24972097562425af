"""What goes wrong, in one line: the exception meant for the person at the keyboard, and what others' errors say."""

LONGEST = 200  # characters of another's error that are repeated


class UserError(Exception):
    """Bad usage or bad input, said in one line: what was wrong, where, what to do. The command line exits 2 on it."""


def reason(error: BaseException) -> str:
    """The first line of an error's text that says something: no heading ("Errors in …:"), or else the error's type.

    Of a file's trouble what the system says, and the file's name.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if not line.endswith(":")), "") or next(iter(lines), type(error).__name__)
    return said if len(said) <= LONGEST else f"{said[:LONGEST].rstrip()} …"
