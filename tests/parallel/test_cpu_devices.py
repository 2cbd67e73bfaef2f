"""A device for every core: how many, who has chosen already, that they never wait for each other
for ever, and that results stay.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frame_jax.config.file import make_parser, parse
from frame_jax.config.run import RunConfig
from frame_jax.errors import USAGE_ERROR
from frame_jax.parallel.cpu_devices import automatic_count
from tests.integration.small_run import write_config, write_corpus
from tests.programs import REPOSITORY


def config(root: Path, *options: str) -> RunConfig:
    path = write_config(root)  # batches of 16 rows
    return parse(["--config", str(path), *options], make_parser())[0]


@pytest.mark.parametrize(
    ("options", "most", "count"),
    [
        ((), 1, 1),
        ((), 2, 2),
        ((), 7, 4),
        ((), 8, 8),
        (("--pretrain.training.batch_size", "12"), 8, 4),
        (("--reference.weak.training.batch_size", "15"), 8, 1),
        (("--pretrain.training.gradient_accumulation_steps", "8"), 8, 2),
        (("--parallel.tensor", "4"), 8, 8),
        (("--parallel.data", "2", "--parallel.fsdp", "1"), 8, 2),
        (("--parallel.data", "16", "--parallel.fsdp", "1"), 8, 1),
        (("--scoring.fsdp", "4"), 7, 4),
        (("--parallel.distributed", "true", "--parallel.num_processes", "4"), 8, 4),
        (("--parallel.distributed", "true"), 8, 1),
    ],
)
def test_mesh_and_batches_divide_by_the_devices(
    tmp_path: Path, options: tuple[str, ...], most: int, count: int
) -> None:
    assert automatic_count(config(tmp_path, *options), most) == count


def environment(**variables: str) -> dict[str, str]:
    """That of a user who has set `variables`: no choice of devices and threads is the suite's."""
    own = {"JAX_NUM_CPU_DEVICES", "PJRT_NPROC", "NPROC"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | variables


SHOW = """
import os, sys
from frame_jax.config.file import make_parser, parse
from frame_jax.parallel import cpu_devices
cpu_devices.available_cores, cpu_devices.memory_bytes = lambda: 2, lambda: 8000
config, _ = parse([*sys.argv[1:3], *sys.argv[4:]], make_parser())
print(cpu_devices.use_cpu_devices(config, int(sys.argv[3])))
import jax
print(len(jax.devices()), "multi_thread_eigen=false" in os.environ["XLA_FLAGS"])
print(cpu_devices.use_cpu_devices(config, int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("variables", "options", "lines"),
    [
        ({}, ["1000"], ["['cpu_devices: auto is 2 on this CPU (2 cores)']", "2 True", "[]"]),
        ({}, ["1001"], ["[]", "1 False", "[]"]),  # both replicas' memory is over a quarter
        ({}, ["1000", "--parallel.cpu_devices", "1"], ["[]", "1 False", "[]"]),
        ({"JAX_NUM_CPU_DEVICES": "3"}, ["1000"], ["[]", "3 False", "[]"]),
        (
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            ["1000", "--parallel.cpu_devices", "2"],
            ["[]", "4 False", "[]"],
        ),
    ],
)
def test_who_has_chosen_the_devices_keeps_them(
    tmp_path: Path, variables: dict[str, str], options: list[str], lines: list[str]
) -> None:
    command = [sys.executable, "-c", SHOW, "--config", str(write_config(tmp_path)), *options]
    shown = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == lines


AHEAD = """
import sys
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from frame_jax.parallel import cpu_devices
cpu_devices.set_cpu_devices(int(sys.argv[1]), many_collectives=sys.argv[1] != "1")
mesh = jax.make_mesh((len(jax.devices()),), ("data",))
step = jax.jit(
    jax.shard_map(
        lambda x: jax.lax.pmean(jnp.sin(x) @ x, "data") * 0.01,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
)
x = jnp.ones((32 * mesh.size, 32), device=NamedSharding(mesh, PartitionSpec("data")))
for _ in range(600):  # far more than the 32 that XLA lets wait
    x = step(x)
x.block_until_ready()
print(mesh.size, "ended")
"""
STUCK_SECONDS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=5 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=15"
)


@pytest.mark.parametrize(
    ("count", "variables", "devices"),
    [
        ("8", {}, 8),
        ("8", {"PJRT_NPROC": "2", "NPROC": "64"}, 8),
        ("1", {"JAX_NUM_CPU_DEVICES": "8"}, 8),
        ("1", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
        ("2", {}, 2),
    ],
)
def test_programs_far_ahead_of_their_devices_end(
    count: str, variables: dict[str, str], devices: int
) -> None:
    variables = variables | {"XLA_FLAGS": f"{variables.get('XLA_FLAGS', '')} {STUCK_SECONDS}"}
    command = [sys.executable, "-c", AHEAD, count]
    ended = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=200
    )
    assert ended.stdout == f"{devices} ended\n", ended.stderr


def test_devices_that_have_started_with_too_few_threads_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    program = "import sys, jax; jax.devices(); from frame_jax.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--config", str(write_config(tmp_path))]
    variables = environment(JAX_NUM_CPU_DEVICES="8", PJRT_NPROC="7")
    refused = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert refused.returncode == USAGE_ERROR
    assert "JAX has started 8 CPU devices with 7 threads" in refused.stderr
    assert "PJRT_NPROC=8" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    path = write_config(tmp_path)
    losses = []
    for count in (1, 2):
        run = tmp_path / f"run-{count}"
        command = [sys.executable, "-m", "frame_jax.main", "--config", str(path), "--run_directory"]
        command += [str(run), "--parallel.cpu_devices", str(count), "--until", "reference"]
        command += ["--reference.strong.training.compute_dtype", "float32"]
        command += ["--reference.strong.training.steps", "20"]
        command += ["--reference.weak.training.steps", "1"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("cpu_devices: 2 is 2" in done.stderr) == (count == 2)
        lines = (run / "reference/strong/metrics.jsonl").read_text("utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[1] != losses[0]  # or both ran on one device
