"""What the tests of faults share."""

import resource
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """`limit_files(n)`: no file may exceed n bytes; to a program, the same as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
