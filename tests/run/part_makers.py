"""What workers do to a part in tests: a module of its own, that they can import."""

import os
import signal
import sys
import time
from pathlib import Path

from frame_jax.errors import UserError
from frame_jax.parallel.host import SHARING
from frame_jax.run.directory import atomic_path
from frame_jax.run.map_parts import Advance


def make(part: Path, advance: Advance) -> None:
    """Writes a file of three pieces, and beside it who began it."""
    with part.with_suffix(".log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    with atomic_path(part) as temporary:
        for piece in range(3):
            with temporary.open("a") as file:
                file.write(f"{part.name} {piece}\n")
            advance(1)


def make_slowly(part: Path, advance: Advance) -> None:
    make(part, lambda amount: time.sleep(0.4))


def make_very_slowly(part: Path, advance: Advance) -> None:
    make(part, lambda amount: time.sleep(1.5))


def make_despite_signals(part: Path, advance: Advance) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    make(part, advance)


def begin_and_sleep(part: Path, advance: Advance) -> None:
    make(part.with_suffix(".begun"), advance)
    time.sleep(60)


def make_but_refuse(part: Path, advance: Advance) -> None:
    if part.name == "part-2":
        raise UserError("/data/x.jsonl line 7: is broken; mend it")
    make(part, advance)


def make_but_fail(part: Path, advance: Advance) -> None:
    if part.name == "part-2":
        raise ZeroDivisionError("of a program")
    make(part, advance)


def die_once(part: Path, advance: Advance) -> None:
    mark = part.with_suffix(".died")
    if part.name == "part-2" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    make(part, advance)


def die_always(part: Path, advance: Advance) -> None:
    if part.name == "part-2":
        os.kill(os.getpid(), signal.SIGKILL)
    make(part, advance)


def tell(part: Path, advance: Advance) -> None:
    """Writes what kind of a worker this is."""
    heavy = sorted({"jax", "flax", "grain", "tensorflow", "orbax"} & set(sys.modules))
    part.write_text(f"{heavy} {os.environ.get(SHARING)}")
