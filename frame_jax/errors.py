"""The one exception that means "the input is wrong, not the program"."""

USAGE_ERROR = 2  # exit code of every UserError


class UserError(Exception):
    """Bad input: a config, a record, a checkpoint, a run directory.

    The message says what is wrong, where (file, line or key) and what to do. `main` prints it
    without a traceback and exits with code 2; every other exception keeps its traceback.
    """
