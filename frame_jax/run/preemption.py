"""Stop signals in, a saved state and an exit code that means "start me again" out.

A thread takes SIGTERM and Ctrl-C, so nothing is raised inside a library and no long call is waited
for. Where only unfinished parts would be lost, the program ends on the spot, which is as safe as
SIGKILL: files are whole or not there. Once training has taken a step, that step ends, the state is
saved, and the program ends; meanwhile further SIGTERMs change nothing, and a second Ctrl-C ends it
on the spot. With several processes the coordination service takes SIGTERM and chooses the step
after which all of them save; outside training they go on until they are killed.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not an error of the program, try again
EXIT_CODES = {signal.SIGTERM: STOPPED, signal.SIGINT: 130}  # as shells have it after Ctrl-C
SHOW_CURSOR = "\x1b[?25h\n"  # which a progress bar hides

# What to do before a program ends on the spot, in the thread that takes signals.
before_exit: list[Callable[[], None]] = []

_asked: signal.Signals | None = None  # the first stop signal that came
_deferred = False


class Preempted(BaseException):
    """Training was asked to stop and is saved; raised by this package alone, never by a signal."""


def install_handler() -> None:
    """Has a thread take stop signals from here on; for the main thread of a program, once."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in EXIT_CODES:
        signal.signal(number, _leave_to_thread)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # all is done by then
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)


def hold() -> None:
    """Lets stop signals wait for `install_handler`, also in a program that replaces this one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)


def take_back() -> None:
    """Takes SIGTERM from the coordination service again, where it serves one process alone."""
    from frame_jax.parallel import processes

    if processes.process_count() == 1 and signal.getsignal(signal.SIGTERM) is _leave_to_thread:
        signal.signal(signal.SIGTERM, _leave_to_thread)


def defer() -> None:
    """From here to the end of `deferral`, a stop waits until training has seen `stop_requested`."""
    from frame_jax.parallel import processes

    global _deferred
    _deferred = processes.process_count() == 1


@contextlib.contextmanager
def deferral() -> Iterator[None]:
    """Around training, until its last checkpoint is written; raises `Preempted` at the end if a
    stop was asked for in the meantime."""
    global _deferred
    try:
        yield
    finally:
        _deferred = False
    if _asked is not None:
        raise Preempted("training had just ended")


def stop_requested(step: int) -> bool:
    """Whether to stop now; the same answer on every process, all of which ask at every step."""
    from frame_jax.parallel import processes

    if processes.process_count() == 1:
        return _asked is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def stopped(state: object) -> int:
    """Says that the program has stopped, and in what state; returns its exit code."""
    asked = _asked or signal.SIGTERM
    _say(f"stopped by {asked.name}: {state}; run the same command to go on")
    return EXIT_CODES[asked]


def exit_now(code: int) -> NoReturn:
    """Ends the program without waiting for threads of libraries, which may crash on the way."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or nobody reads
            stream.flush()
    os._exit(code)


def _leave_to_thread(_signal: int, _frame: object) -> None:
    """What Python calls for a signal, after it has written its number to the thread's pipe."""


def _watch(pipe: int) -> None:
    global _asked
    while True:
        for number in os.read(pipe, 1):
            if number not in EXIT_CODES:
                continue
            first, _asked = _asked is None, _asked or signal.Signals(number)
            if not _deferred or (number == signal.SIGINT and not first):
                _end(first)
            elif first:
                _say(f"{_asked.name}: stops after this step; Ctrl-C ends it without saving")


def _end(first: bool) -> NoReturn:
    for call in before_exit:
        with contextlib.suppress(Exception):  # nothing may keep the program
            call()
    assert _asked is not None
    if first:
        stopped("what is finished stays")
    os._exit(EXIT_CODES[_asked])


def _say(line: str) -> None:
    """Prints a line without waiting for a thread that is printing."""
    with contextlib.suppress(Exception):  # closed, or nobody reads
        cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
        os.write(sys.stderr.fileno(), f"{cursor}{line}\n".encode())
