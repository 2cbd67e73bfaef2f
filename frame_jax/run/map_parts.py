"""Calls a function on every part of a phase: in worker processes of each host, or in tasks of Ray.

A part's files appear whole or not at all, so it does not matter who makes them, nor when a worker
or a whole run is stopped: the next start makes what is missing.

Workers come from a fork server, which imports the function's module once, without JAX and
TensorFlow, and forks itself for each. A worker has one thread and its share of the host's memory,
and ends when the process that it works for ends, however that happens.
"""

import collections
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from frame_jax.config.workers import WorkersConfig
from frame_jax.errors import UserError, log_to_stderr, print_warning
from frame_jax.parallel import processes
from frame_jax.parallel.host import SHARING, available_cores, memory_bytes
from frame_jax.run import progress
from frame_jax.run.preemption import EXIT_CODES
from frame_jax.run.program_exit import find_user_error, run_on_all_processes

Part = TypeVar("Part")
Advance = Callable[[float], None]
Function = Callable[[Any, Advance], object]

WORTH_BYTES = 1 << 25  # of work; less is done before workers have started
WORKER_BYTES = 1 << 30  # of memory for each
ATTEMPTS = 2  # at a part whose worker is killed
RETRIES = 3  # of a task whose worker or node is lost
FEWER = (
    "If the system ran out of memory (`dmesg` says so), use fewer workers (--workers.count N); "
    "parts that are finished stay"
)
DONE, ADVANCED, REFUSED, FAILED = "done", "advanced", "refused", "failed"  # what workers say


def map_parts(
    function: Callable[[Part, Advance], object],
    parts: Mapping[str, Part],
    workers: WorkersConfig,
    *,
    name: str,
    unit: str = "parts",
    work_bytes: float,
) -> None:
    """Calls `function(part, advance)` for each of `parts`, which have names.

    Called on every process of a run: each takes a share; with Ray the first one hands out all.
    Function and parts are pickled. The function may call `advance` with an amount of `unit`, unless
    that is parts. `work_bytes` is about what is read in all: a little is done right here.

    Raises:
        UserError: on every process: the first of any part, after which the others are given up; or
            naming a part whose workers are killed.
    """
    share = {key: parts[key] for key in processes.local_share(list(parts))}
    if workers.engine == "ray":
        share = dict(parts) if processes.is_first() else {}
    total, counted = len(share), unit == "parts"
    show = processes.is_first() and total > counted  # one part has no progress to show
    done = 0

    def run() -> None:
        bar = progress.progress_bar(name, total if counted else None, unit, show=show)
        with bar as update:

            def advance(amount: float) -> None:
                update(0 if counted else amount, f"part {done + 1} of {total}")

            def finish(part: str) -> None:
                nonlocal done
                done += 1
                update(counted, part)

            count = worker_count(workers, total, work_bytes)
            if workers.engine == "ray":
                _run_in_tasks(function, share, workers, name, advance, finish)
            elif count > 1:
                _run_in_workers(function, share, count, name, advance, finish)
            else:
                for key, part in share.items():
                    function(part, advance)
                    finish(key)

    run_on_all_processes(run)


def missing(paths: Iterable[Path]) -> list[int]:
    """Which of these files are not there, by their numbers, as process 0 sees it: a file system may
    show names late to others, and others may be making some already. Called on every process."""
    return processes.broadcast_from_first([i for i, path in enumerate(paths) if not path.exists()])


def worker_count(workers: WorkersConfig, parts: int, work_bytes: float) -> int:
    """How many processes of this host work on so many parts; 1 is this one."""
    if workers.count is None and work_bytes < WORTH_BYTES:
        return 1
    room = max(memory_bytes() // WORKER_BYTES, 1)
    return max(min(workers.count or min(available_cores(), room), parts), 1)


Finish = Callable[[str], None]


def _run_in_workers(
    function: Function,
    parts: Mapping[str, Any],
    count: int,
    name: str,
    advance: Advance,
    finish: Finish,
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, getattr(function, "func", function).__module__])
    waiting, attempts = collections.deque(parts), collections.Counter[str]()
    started: list[Any] = []
    busy: dict[Any, tuple[Any, str]] = {}  # the pipe to a worker: its process, and its part

    def start() -> None:
        here, there = context.Pipe()
        started.append(context.Process(target=_work, args=(function, there, count), daemon=True))
        started[-1].start()
        there.close()
        hand_out(here, started[-1])

    def hand_out(here: Any, process: Any) -> None:
        if waiting:
            busy[here] = process, waiting.popleft()
            with contextlib.suppress(OSError):  # it has died, which is seen when it is listened to
                here.send(parts[busy[here][1]])

    try:
        for _ in range(count):
            start()
        while busy:
            ready: list[Any] = connection.wait(list(busy))
            for here in ready:
                process, part = busy[here]
                try:
                    kind, value = here.recv()
                except (EOFError, OSError):
                    del busy[here]
                    process.join()
                    attempts[part] += 1
                    lost = f"{name}: the worker that made {part} died ({process.exitcode})"
                    if attempts[part] == ATTEMPTS:
                        raise UserError(f"{lost}, as one before it. {FEWER}") from None
                    print_warning(f"{lost}; another one makes it")
                    waiting.appendleft(part)
                    start()
                    continue
                if kind == ADVANCED:
                    advance(value)
                    continue
                raise_problem(kind, value)
                finish(part)
                del busy[here]
                hand_out(here, process)
    finally:
        for process in started:
            process.kill()
            process.join()


def _work(function: Function, there: Any, workers: int) -> None:
    """The life of a worker: parts in, what comes of them out."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # they are for the process that it works for
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_to_stderr()
    use_one_thread(workers)
    with contextlib.suppress(EOFError):  # nothing is left to do
        while True:
            there.send(call(function, there.recv(), lambda amount: there.send((ADVANCED, amount))))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def use_one_thread(workers: int) -> None:
    """Leaves the host's other cores, and its memory, to the other workers."""
    import pyarrow

    os.environ[SHARING], os.environ["TOKENIZERS_PARALLELISM"] = str(workers), "false"
    pyarrow.set_cpu_count(1)


def call(function: Function, part: Any, advance: Advance) -> tuple[str, str]:
    """Calls `function`, and says what came of it in a way that can be sent."""
    try:
        function(part, advance)
    except Exception as error:
        known = find_user_error(error)
        return (FAILED, traceback.format_exc()) if known is None else (REFUSED, str(known))
    return DONE, ""


def raise_problem(kind: str, text: str) -> None:
    """Raises what `call` says of a part that was not made."""
    if kind == REFUSED:
        raise UserError(text)
    if kind == FAILED:
        raise RuntimeError(f"a worker failed:\n{text}")


def _run_in_tasks(
    function: Function,
    parts: Mapping[str, Any],
    workers: WorkersConfig,
    name: str,
    advance: Advance,
    finish: Finish,
) -> None:
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # without end otherwise
    try:
        import ray
    except ImportError as error:
        absent = "workers.engine: ray is not installed here: pip install 'frame-jax[ray]'"
        raise UserError(f"{absent}, on every node, or leave workers.engine out") from error
    sys.path[:] = [path for path in sys.path if not path.endswith("thirdparty_files")]
    asked, folder, left = dict(workers.ray_resources), str(Path.cwd()), {}
    options: dict[str, Any] = {"num_cpus": asked.pop("CPU", 1), "max_retries": RETRIES}
    options |= {"memory": asked.pop("memory", None), "resources": asked}
    libc, handler = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 10)  # a struct sigaction
    libc.sigaction(signal.SIGTERM, None, handler)  # perhaps of JAX, and lost to Ray where it starts
    # A cluster that Ray starts for this program ends with the thread that asked for it.
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as stack:
        stack.callback(libc.sigaction, signal.SIGTERM, handler, None)  # once Ray has ended
        address = workers.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            thread.submit(ray.init, address, logging_level=40).result()  # errors alone
            stack.callback(ray.shutdown)  # and with it of what is left of the tasks
            libc.sigaction(signal.SIGTERM, handler, None)
            task, shared = ray.remote(**options)(_task), ray.put(function)
            for key, part in parts.items():
                left[task.options(name=f"{name} {key}").remote(shared, part, folder)] = key
        except Exception as error:  # of many kinds
            asked_for = f"ray_address {address}, ray_resources {workers.ray_resources}"
            raise UserError(f"workers: {asked_for}: {error}") from error
        while left:
            for ready in ray.wait(list(left), num_returns=len(left), timeout=1)[0]:
                try:
                    (kind, text), amount = ray.get(ready)
                except ray.exceptions.RayError as error:
                    cause = str(getattr(error, "cause", error)).strip(".\n").partition("\n")[0]
                    raise UserError(
                        f"{name}: Ray could not have {left[ready]} made, in up to {1 + RETRIES} "
                        f"attempts: {cause}. Nodes need frame_jax as it is here and the run's "
                        "files, tasks no more memory than workers.ray_resources asks for"
                    ) from error
                raise_problem(kind, text)
                advance(amount)
                finish(left.pop(ready))


def _task(function: Function, part: Any, folder: str) -> tuple[tuple[str, str], float]:
    """A part under Ray: what came of it, and the sum of what it advanced by."""
    os.chdir(folder)  # of relative paths
    # Ray brings copies of others' packages, whose text is none of a corpus `python_library`.
    sys.path[:] = [path for path in sys.path if not path.endswith("thirdparty_files")]
    log_to_stderr()
    use_one_thread(os.cpu_count() or 1)
    advanced: list[float] = []
    return call(function, part, advanced.append), sum(advanced)
