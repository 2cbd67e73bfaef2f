"""Settings under which processes cannot find each other: one message each, and no wait."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.extend import backend

from frame_jax.config.parallel import ParallelConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from tests.integration.small_run import write_config, write_corpus
from tests.programs import REPOSITORY, free_port


@pytest.fixture(autouse=True)
def collectives_of_one_process() -> Iterator[None]:
    backend.clear_backends()  # processes are joined before JAX computes anything
    yield
    jax.config.update("jax_cpu_collectives_implementation", None)


def refused(match: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=match):
        processes.start(ParallelConfig(**settings))
    assert not jax.distributed.is_initialized()


def test_what_nothing_says_is_named() -> None:
    address = f"localhost:{free_port()}"
    refused(
        "parallel.coordinator_address, parallel.num_processes, parallel.process_id:",
        distributed=True,
    )
    refused(
        "says parallel.num_processes, parallel.pr", distributed=True, coordinator_address=address
    )
    refused(
        "says parallel.process_id:", distributed=True, coordinator_address=address, num_processes=2
    )
    refused(
        "says parallel.num_processes:", distributed=True, coordinator_address=address, process_id=0
    )


def test_settings_of_processes_need_distributed() -> None:
    refused(
        "parallel.num_processes, parallel.process_id: set parallel.distr",
        num_processes=2,
        process_id=1,
    )


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":8476", "localhost:port", "localhost:0", "host:65536"]
)
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(UserError, match="must be host:port"):
        ParallelConfig(coordinator_address=address)


def test_a_coordinator_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"distributed": True, "num_processes": 2}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        refused(
            f"parallel.coordinator_address {address}: .*in use",
            coordinator_address=address,
            process_id=0,
            **both,
        )
    refused(
        "no.host.invalid:8476: ", coordinator_address="no.host.invalid:8476", process_id=0, **both
    )
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0.1)
    address = f"localhost:{free_port()}"
    refused(f"{address}: nothing listened there", coordinator_address=address, process_id=1, **both)


def test_a_port_that_a_run_has_just_left_is_free() -> None:
    with socket.create_server(("localhost", 0)) as server:
        address = server.getsockname()
        client = socket.create_connection(address)
        server.accept()[0].close()  # leaves the port waiting
        client.close()
    processes.check_coordinator(f"localhost:{address[1]}", 0)


@pytest.mark.slow
def test_the_program_ends_with_one_message(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    config = str(write_config(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "frame_jax.main", "--config", config, "--parallel.distributed=true"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "error: parallel.distributed" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
