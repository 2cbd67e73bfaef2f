"""Starts the processes of a pod, before devices; lets them wait for each other and exchange values.

Every phase runs on every process of a pod. Work that comes in parts is divided by process index
(`local_share`), work that must happen once is done by process 0, and `barrier` separates the two.

No process waits for ever. One that dies is missed after HEARTBEAT_SECONDS: the coordination
service then ends the others with a message that names it. One that lives but does not come is
given up on at a barrier after BARRIER_SECONDS.
"""

import itertools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from frame_jax.config.parallel import ParallelConfig
from frame_jax.errors import USAGE_ERROR, UserError, print_error, print_note

T = TypeVar("T")

JOIN_SECONDS = 300  # in which all processes must have started
HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 60
LEAVE_SECONDS = 10
BARRIER_SECONDS = 12 * 3600  # longer than the longest time that one process may be behind another

_calls = itertools.count()  # the same on every process, because all make the same calls


def start(config: ParallelConfig) -> None:
    """Joins the other processes of a pod; does nothing for a single process.

    Raises:
        UserError: naming the setting of `parallel` that is missing or cannot work.
    """
    keys = ("coordinator_address", "num_processes", "process_id")
    given = [f"parallel.{key}" for key in keys if getattr(config, key) is not None]
    if not config.distributed and given:
        raise UserError(f"{', '.join(given)}: set parallel.distributed, too, or leave them out")
    if not config.distributed:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if config.coordinator_address is not None and config.process_id is not None:
        check_coordinator(config.coordinator_address, config.process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator_address,
            num_processes=config.num_processes,
            process_id=config.process_id,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, LookupError) as error:
        missing = [f"parallel.{key}" for key in keys if getattr(config, key) is None]
        raise UserError(
            f"parallel.distributed: {error} Neither the environment (GKE, Cloud TPU, srun, mpirun) "
            f"nor the config says {', '.join(missing) or 'it'}: set these, or leave out "
            "parallel.distributed to run one process"
        ) from error


def check_coordinator(address: str, process: int) -> None:
    """Sees that process 0 can listen at the coordinator's address, that the others can reach it.

    JAX ends the program with a stack trace where they cannot.

    Raises:
        UserError: saying why not; after JOIN_SECONDS where nothing listens.
    """
    host, _, port = address.rpartition(":")
    host, ends = host.strip("[]"), time.monotonic() + JOIN_SECONDS
    while True:
        try:
            if process == 0:
                socket.getaddrinfo(host, port)
                dual = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if dual else socket.AF_INET
                socket.create_server(("", int(port)), family=family, dualstack_ipv6=dual).close()
            else:
                socket.create_connection((host, int(port)), JOIN_SECONDS).close()
            return
        except OSError as error:
            if process != 0 and time.monotonic() < ends:
                time.sleep(0.5)
                continue
            what = (
                "process 0 cannot listen there; name this host and a port that is free"
                if process == 0
                else f"nothing listened there for {JOIN_SECONDS} s; see whether process 0 runs, "
                "and that the hosts reach each other"
            )
            raise UserError(f"parallel.coordinator_address {address}: {what} ({error})") from error


def _joined() -> Any:
    """JAX's state of the processes that this one has joined; None for a single process.

    It is not public; Orbax, which saves checkpoints of several processes, needs it as well. JAX's
    own count of processes waits for devices, and its other barriers have no time limit.
    """
    module = sys.modules.get("jax._src.distributed")
    return module.global_state if module is not None and module.global_state.client else None


def process_index() -> int:
    """The number of this process, from 0."""
    return 0 if (joined := _joined()) is None else joined.process_id


def process_count() -> int:
    """The number of processes of the run."""
    return 1 if (joined := _joined()) is None else joined.num_processes


def is_first() -> bool:
    """Whether this process does the work that must happen once."""
    return process_index() == 0


def print_notes(lines: Iterable[str]) -> None:
    """Prints notes, which every process has, once."""
    if is_first():
        for line in lines:
            print_note(line)


def local_share(items: Sequence[T]) -> list[T]:
    """The items that this process works on: every n-th for n processes."""
    return list(items[process_index() :: process_count()])


def broadcast_from_first(value: T) -> T:
    """Process 0's `value`, which JSON must be able to hold, on every process."""
    if process_count() == 1:
        return value
    key = f"frame_jax/{next(_calls)}"
    if is_first():
        _joined().client.key_value_set(key, json.dumps(value))
    return cast(T, json.loads(_joined().client.blocking_key_value_get(key, BARRIER_SECONDS * 1000)))


def all_agree(condition: bool) -> bool:
    """Whether `condition` holds on every process; the same answer on all."""
    return not failing_processes(condition, "no")


def failing_processes(condition: bool, word: str) -> dict[int, str]:
    """The processes on which `condition` does not hold, and the `word` of each; the same on all."""
    if process_count() == 1:
        return {} if condition else {0: word}
    key = f"frame_jax/{next(_calls)}"
    if not condition:
        _joined().client.key_value_set(f"{key}/{process_index()}", word)
    barrier(key)
    found = _joined().client.key_value_dir_get(f"{key}/")
    return {int(name.rsplit("/", 1)[-1]): text for name, text in found}


def barrier(name: str) -> None:
    """Waits until every process has come here.

    Raises:
        RuntimeError: naming the processes that did not come in time.
    """
    if process_count() == 1:
        return
    try:
        _joined().client.wait_at_barrier(f"{next(_calls)} {name}", BARRIER_SECONDS * 1000)
    except RuntimeError as error:
        raise RuntimeError(
            f"process {process_index()} gave up at {name!r}: {missing_processes(error)}"
        ) from error


def missing_processes(error: Exception) -> str:
    """A message with the processes that the coordination service names in `error`."""
    text = str(error)
    named = re.findall(r"\btask[ :](\d+)|^(\d+)$", text, re.IGNORECASE | re.MULTILINE)
    others = sorted({int(a or b) for a, b in named} - {process_index()})
    if not others and "leader task" in text:
        others = [0]
    first_line = text.splitlines()[0]
    if not others:
        return first_line
    return f"process {', '.join(map(str, others))} has died or did not come ({first_line})"


def disconnect() -> None:
    """Leaves the other processes, which end as well; does nothing for a single process."""
    if (joined := _joined()) is not None:
        joined.shutdown()


def leave_without_others(code: int) -> None:
    """Ends this process, which has failed, with exit code `code` if the others do not end too.

    JAX would otherwise wait for them, and then end this process with another exit code.
    """
    if process_count() == 1:
        return
    try:
        _joined().client.wait_at_barrier("leave", LEAVE_SECONDS * 1000)
    except RuntimeError as error:
        if code != USAGE_ERROR:  # which has been reported
            what = f"process {process_index()} gave up: {missing_processes(error)}"
            print_error(UserError(what))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
