"""How a program ends: an error in; a message and an exit code out, on every process of a run."""

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

from frame_jax.errors import (
    USAGE_ERROR,
    UserError,
    find_disk_error,
    is_disk_full,
    log_to_stderr,
    print_error,
)
from frame_jax.run.preemption import EXIT_CODES, exit_now

T = TypeVar("T")


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` that `error` is or came from: libraries wrap what is raised inside them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if not is_disk_full(error):
        return find_disk_error(error)
    return UserError(f"no room: {error}. Make room and run the same command again")


def report_error(error: Exception) -> int:
    """Says what the user can fix and returns the exit code; raises any other error again."""
    known = find_user_error(error)
    if known is None:
        raise error
    print_error(known)
    return USAGE_ERROR


def positive(text: str) -> int:
    """Parses a whole number of at least 1 from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"invalid: {text} is not positive")
    return number


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int | None],
    arguments: list[str] | None,
) -> int:
    """Parses the command line of a program that computes nothing on accelerators, and runs it;
    returns the exit code: what `command` returns, 0 where that is None, or 2 for bad input."""
    options = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # read when JAX is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    try:
        return command(options) or 0
    except Exception as error:
        return report_error(error)


def run_on_all_processes(action: Callable[[], T]) -> T:
    """What `action` gives on this process, if it ends well on all; called on every process.

    Otherwise one process would end, and the others would wait for it at the next barrier.

    Raises:
        UserError: where it raised one, here or, naming the process, elsewhere.
    """
    from frame_jax.parallel import processes

    problem: UserError | None = None
    try:
        result = action()
    except Exception as error:
        problem = find_user_error(error)
        if problem is None:
            raise
    elsewhere = processes.failing_processes(problem is None, f"on {os.uname().nodename}: {problem}")
    if problem is not None:
        raise problem
    if elsewhere:
        index = min(elsewhere)
        raise UserError(f"process {index}, {elsewhere[index]}")
    return result


def run_on_first_process(action: Callable[[], T]) -> T:
    """What `action` gives on process 0, on every process; JSON must be able to hold it.

    Raises:
        UserError: on every process, where it raised one.
    """
    from frame_jax.parallel import processes

    found = run_on_all_processes(lambda: action() if processes.is_first() else None)
    return cast(T, processes.broadcast_from_first(found))


def exit_program(code: int) -> NoReturn:
    """Ends this program, after an error without waiting for other processes of the run."""
    joined = sys.modules.get("frame_jax.parallel.processes")
    if code in EXIT_CODES.values():
        if joined is not None:
            joined.disconnect()
        exit_now(code)
    if code != 0 and joined is not None:
        joined.leave_without_others(code)
    sys.exit(code)


class LenientStream(io.TextIOWrapper):
    """A text stream that drops what cannot be written: its terminal, pipe or disk may be gone."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Makes the standard streams fit for any text: no message or progress bar may end a program.

    A closed stream goes to nowhere; otherwise the next file to be opened would take its number, and
    libraries would write their messages into it. Characters that an encoding lacks are spelled out.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode, closefd=False))
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="backslashreplace")
    shown = os.fdopen(sys.stderr.fileno(), "wb", closefd=False)
    sys.stderr = LenientStream(shown, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def run_main(main: Callable[[], int]) -> NoReturn:
    """Ends this program with the exit code of `main`, or with 1 after what is its own fault."""
    prepare_streams()
    log_to_stderr()
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    exit_program(code)
