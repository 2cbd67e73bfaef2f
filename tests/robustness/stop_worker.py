"""Runs the program with signals sent to it: `stop_worker.py SIGNALS ARGUMENTS OF THE PROGRAM`.

SIGNALS is JSON: lists of a function (`module:name`), the number of the call of it in which the
signal comes, the seconds after that call began, and the signal's name.
"""

import importlib
import itertools
import json
import operator
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable


def send_in_call(function: str, number: int, seconds: float, name: str) -> None:
    module, _, path = function.partition(":")
    folder, _, attribute = path.rpartition(".")
    owner = importlib.import_module(module)
    owner = operator.attrgetter(folder)(owner) if folder else owner
    original: Callable = getattr(owner, attribute)
    calls = itertools.count(1)

    def send() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.Signals[name])

    def called(*arguments: object, **named: object) -> object:
        if next(calls) == number:
            threading.Thread(target=send, daemon=True).start() if seconds else send()
        return original(*arguments, **named)

    setattr(owner, attribute, called)


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        send_in_call(*each)
    sys.argv = sys.argv[1:]
    runpy.run_module("frame_jax.main", run_name="__main__", alter_sys=True)
