"""Process start-up and the few things processes do together.

Every phase runs on every process of a pod. Work that comes in parts is claimed by process index
(`mine`), work that must happen once is done by process 0, and `barrier` separates the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax

from frame_jax.config import ParallelConfig

T = TypeVar("T")


def start(config: ParallelConfig) -> None:
    """Joins the other processes of a pod; does nothing for a single process."""
    if not config.distributed or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=config.coordinator,
        num_processes=config.processes,
        process_id=config.process,
    )


def index() -> int:
    """This process, from 0."""
    return jax.process_index()


def count() -> int:
    """All processes of the run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process does the work that must happen once."""
    return index() == 0


def mine(items: Sequence[T]) -> list[T]:
    """The share of `items` that this process works on."""
    return list(items[index() :: count()])


def agree(value: int) -> int:
    """Process 0's `value`, on every process."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
