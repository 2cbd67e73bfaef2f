"""Process start-up and the few things processes do together.

Every phase runs on every process of a pod. Work that comes in parts is claimed by process index
(`local_share`), work that must happen once is done by process 0, and `barrier` separates the two.

No process waits for ever. One that dies is missed after HEARTBEAT_SECONDS: the coordination
service then ends the others with a message that names it. One that lives but does not come is
given up on at a barrier after BARRIER_SECONDS.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

from frame_jax.config.parallel import ParallelConfig
from frame_jax.errors import USAGE_ERROR

T = TypeVar("T")

HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 60
LEAVE_SECONDS = 10
BARRIER_SECONDS = 12 * 3600  # longer than the longest time that one process may be behind another

_calls = itertools.count()  # the same on every process, because all make the same calls


def start(config: ParallelConfig) -> None:
    """Joins the other processes of a pod; does nothing for a single process."""
    if not config.distributed or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=config.coordinator_address,
        num_processes=config.num_processes,
        process_id=config.process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def leave_accelerators() -> None:
    """Has JAX work on the CPU, for programs that compute nothing; before anything else of JAX."""
    jax.config.update("jax_platforms", "cpu")


def process_index() -> int:
    """This process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """All processes of the run."""
    return jax.process_count()


def device_count() -> int:
    """All devices of all processes."""
    return jax.device_count()


def is_first() -> bool:
    """Whether this process does the work that must happen once."""
    return process_index() == 0


def local_share(items: Sequence[T]) -> list[T]:
    """The share of `items` that this process works on."""
    return list(items[process_index() :: process_count()])


def _client() -> Any:
    # JAX offers barriers with a time limit, and keys and values, only on its own client.
    from jax._src import distributed

    return distributed.global_state.client


def broadcast_from_first(value: int) -> int:
    """Process 0's `value`, on every process."""
    if process_count() == 1:
        return value
    key = f"frame_jax/{next(_calls)}"
    if is_first():
        _client().key_value_set(key, str(value))
    return int(_client().blocking_key_value_get(key, BARRIER_SECONDS * 1000))


def all_agree(condition: bool) -> bool:
    """Whether `condition` holds on every process; the same answer on all."""
    return not failing_processes(condition, "no")


def failing_processes(condition: bool, word: str) -> dict[int, str]:
    """The processes on which `condition` does not hold, and what each says; the same on all."""
    if process_count() == 1:
        return {} if condition else {0: word}
    key = f"frame_jax/{next(_calls)}"
    if not condition:
        _client().key_value_set(f"{key}/{process_index()}", word)
    barrier(key)
    found = _client().key_value_dir_get(f"{key}/")
    return {int(name.rsplit("/", 1)[-1]): messages for name, messages in found}


def barrier(name: str) -> None:
    """Returns when every process has come here.

    Raises:
        RuntimeError: naming the processes that did not come in time.
    """
    if process_count() == 1:
        return
    try:
        _client().wait_at_barrier(f"{next(_calls)} {name}", BARRIER_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"process {process_index()} gave up at {name!r}: {missing_processes(error)}"
        ) from error


def missing_processes(error: Exception) -> str:
    """The processes that the coordination service names in `error`, and what it says."""
    text = str(error)
    named = re.findall(r"\btask[ :](\d+)|^(\d+)$", text, re.IGNORECASE | re.MULTILINE)
    others = sorted({int(a or b) for a, b in named} - {process_index()})
    if not others and "leader task" in text:
        others = [0]
    first_line = text.splitlines()[0]
    if not others:
        return first_line
    return f"process {', '.join(map(str, others))} has died or did not come ({first_line})"


def leave_without_others(code: int) -> None:
    """Before this process ends with an error: ends it without the others if they do not follow.

    JAX would otherwise wait for them, and then end this process with another exit code.
    """
    if not jax.distributed.is_initialized() or process_count() == 1:
        return
    try:
        _client().wait_at_barrier("leave", LEAVE_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        if code != USAGE_ERROR:  # which has been reported
            print(
                f"error: process {process_index()} gave up: {missing_processes(error)}",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
