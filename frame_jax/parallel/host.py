"""What this process may use of its machine: cores and memory, a share of them in a worker."""

import os
from pathlib import Path

SHARING = "FRAME_JAX_WORKERS"  # how many workers share this host; set in each of them
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container or a Slurm job


def available_cores() -> int:
    """Cores that this process may use; one in a worker."""
    if SHARING in os.environ:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of this machine or of the container around this process; in a worker its share."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if MEMORY_LIMIT.exists() and (limit := MEMORY_LIMIT.read_text().strip()) != "max":
        memory = min(memory, int(limit))
    return memory // int(os.environ.get(SHARING, 1))
