"""The one exception whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad usage or bad input, said in one line: what was wrong, where, what to do. The command line exits 2 on it."""
