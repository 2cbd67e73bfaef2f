"""Shared by all tests: JAX on the CPU, with as many virtual devices as a test asks for.

Tests compile far more than they compute. So their programs are compiled without optimizations,
unless XLA_FLAGS says otherwise (`XLA_FLAGS= make test` has the programs that users have), and what
any process of the suite has compiled is read from `.cache/jax` by the others. Both are settings of
the environment, which the programs that tests start inherit.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from frame_jax.training.training_job import TrainingJob

UNOPTIMIZED = "--xla_backend_optimization_level=0"
UNFUSED = f"{UNOPTIMIZED} --xla_cpu_use_fusion_emitters=false"
COMPILED = Path(__file__).parents[1] / ".cache" / "jax"
SLOW_FIXTURES = {"trained", "use_devices"}


def accepted(flags: str) -> bool:
    """Whether this jaxlib knows the flags: those that it does not know end the program."""
    program = "import jaxlib.xla_client as client; client.CompileOptions()"
    environment = os.environ | {"XLA_FLAGS": flags}
    tried = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    return tried.returncode == 0


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # whatever machine this is: what promises bits needs it
os.environ["AWS_MAX_ATTEMPTS"] = "1"  # so that what is tried again is tried by us
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = UNFUSED if accepted(UNFUSED) else UNOPTIMIZED
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: at the end, no process waits long for the other."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SLOW_FIXTURES or any(item.iter_markers("processes")):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> "TrainingJob":
    """The small job of the trainer's tests, at its end: to be read, and copied where it changes."""
    from frame_jax.training.trainer import train
    from tests.training.rows import make_job, write_rows

    root = tmp_path_factory.mktemp("trained")
    write_rows(root)
    job = make_job(root)
    train(job)
    return job


def pytest_configure() -> None:
    """Shows the package's notes and warnings, which tests read, as its programs do."""
    from frame_jax.errors import log_to_stderr

    log_to_stderr()


def _use_devices(count: int) -> None:
    import jax
    from jax.extend import backend

    # XLA takes as many threads as there are cores, and a device holds some while it waits for
    # others (`frame_jax.parallel.cpu_devices`).
    os.environ.pop("PJRT_NPROC", None)
    if count > 1:
        os.environ["PJRT_NPROC"] = str(4 * count)
    backend.clear_backends()
    jax.clear_caches()
    jax.config.update("jax_num_cpu_devices", count)


@pytest.fixture
def use_devices() -> Iterator[Callable[[int], None]]:
    """`use_devices(n)` restarts JAX with n virtual CPU devices; arrays made before are lost."""
    yield _use_devices
    _use_devices(1)
