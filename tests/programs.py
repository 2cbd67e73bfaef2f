"""Programs of one run, side by side."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


# Runs a module as `-m` does, with less patience for what another process writes.
IMPATIENT = [
    "-c",
    "import runpy, sys\n"
    "from frame_jax.run import storage\n"
    "storage.SEEN_SECONDS = 2\n"
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)",
]


def side_by_side(*arguments: list[str], seconds: float = 300) -> list[tuple[int, str]]:
    """Exit code and output of `python ARGUMENTS`, one program for each list, all at one time."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    programs = [
        subprocess.Popen(
            [sys.executable, *own],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in arguments
    ]
    outputs = [program.communicate(timeout=seconds)[0] for program in programs]
    return [(p.returncode, output) for p, output in zip(programs, outputs, strict=True)]
