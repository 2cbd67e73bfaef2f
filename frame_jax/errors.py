"""The one exception that means "the input is wrong, not the program", and how it is shown."""

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
    """Shows what is wrong on stderr; names and texts in it are data and move no cursor."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


def print_note(text: str) -> None:
    """Says on stderr what a run has decided or found, in one line."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without anything a terminal would obey: control and format characters are spelled out.

    >>> printable("a\\x1b[2Jb\\tc")
    'a\\\\x1b[2Jb\\tc'
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else character.encode("unicode_escape").decode()
        for character in text
    )
