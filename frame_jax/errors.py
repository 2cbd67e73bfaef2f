"""`UserError`, which means "the input is wrong, not the program", and how it is shown."""

from __future__ import annotations

import sys
import unicodedata

USAGE_ERROR = 2  # exit code of every UserError


class UserError(Exception):
    """Bad input: a config, a record, a checkpoint, a run directory.

    The message says what is wrong, where (file, line or key) and what to do. `main` prints it
    without a traceback and exits with code 2; every other exception keeps its traceback.
    """


def print_error(error: UserError) -> None:
    """Prints an error on stderr, with control characters in names and texts escaped."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


def print_note(text: str) -> None:
    """Prints one line on stderr about what a run has decided or found."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Escapes everything in `text` that a terminal would obey: control and format characters.

    >>> printable("a[2Jb	c")
    'a\x1b[2Jb	c'
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else character.encode("unicode_escape").decode()
        for character in text
    )
