"""What this process may use of its machine: cores, memory, open files; a share in a worker."""

import os
import resource
import sys
from pathlib import Path

SHARING = "FRAME_JAX_WORKERS"  # how many workers share this host; set in each of them
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def in_worker() -> bool:
    """Whether this process shares the host with others like it, see `run/map_parts.py`."""
    return SHARING in os.environ


def available_cores() -> int:
    """Cores that this process may use; one in a worker."""
    if in_worker():
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


def prefer_huge_pages() -> None:
    """Restarts this program, once, with glibc asking for huge pages.

    XLA on the CPU maps its working memory afresh at every step, and touching it a small page at a
    time was a third of a training step. glibc reads the setting only when a program starts.
    """
    name, value = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
    if sys.platform == "linux" and name not in os.environ:
        os.environ[name] = value
        os.execv(sys.executable, sys.orig_argv)


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may: it opens a file for each part."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux" and limit < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
