"""SIGTERM in, a saved state and an exit code that means "start me again" out.

Outside training a single process stops at once: parts are whole or not there. Training finishes
its step, saves and stops. With several processes the coordination service takes the signal and
chooses the step after which all of them save; outside training they go on until they are killed.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not an error of the program, try again

_requested = False
_deferred = False


class Preempted(BaseException):
    """The program was asked to stop; no library may take it for an error of its own."""


def _handle(_signal: int, _frame: FrameType | None) -> None:
    global _requested
    _requested = True
    if not _deferred:
        raise Preempted("nothing was being trained")


def install_handler() -> None:
    """Lets SIGTERM raise `Preempted` in this process, unless it is one of several."""
    from frame_jax.parallel import processes

    if processes.process_count() == 1:
        signal.signal(signal.SIGTERM, _handle)


@contextlib.contextmanager
def defer_sigterm() -> Iterator[None]:
    """Inside, SIGTERM is only noted; the block asks `stop_requested` when it can stop."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if _requested:
        raise Preempted("training had just ended")


def stop_requested(step: int) -> bool:
    """Whether to stop now; the same answer on every process, all of which ask at every step."""
    from frame_jax.parallel import processes

    if processes.process_count() == 1:
        return _requested
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
