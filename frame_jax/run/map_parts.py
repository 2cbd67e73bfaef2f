"""Calls a function on every part of a phase (a stand-in: here, one after another)."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from frame_jax.config.workers import WorkersConfig
from frame_jax.parallel import processes
from frame_jax.run import progress

Part = TypeVar("Part")
Advance = Callable[[float], None]


def map_parts(
    function: Callable[[Part, Advance], object],
    parts: Mapping[str, Part],
    workers: WorkersConfig,
    *,
    name: str,
    unit: str = "parts",
    work_bytes: float,
) -> None:
    """Calls `function(part, advance)` for this process's share of `parts`."""
    share = processes.local_share(list(parts))
    with progress.progress_bar(name, len(share), unit, show=processes.is_first()) as update:
        for key in share:
            function(parts[key], lambda amount: None)
            update(1, key)
    processes.barrier(name)
