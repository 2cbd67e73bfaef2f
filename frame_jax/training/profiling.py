"""Traces a range of training steps, for XProf and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class StepTrace:
    """Traces the steps of a range.

    Args:
        folder: The trace goes into `plugins/profile/` under it.
        steps: `START:STOP` in steps of the run, STOP not included; None traces nothing.
    """

    def __init__(self, folder: Path, steps: str | None):
        self._folder, self._running = folder, False
        self._first, self._stop = (-1, -1) if steps is None else map(int, steps.split(":"))

    def before_step(self, step: int, state: Any) -> None:
        """Starts or ends the trace; call it before each step, with the state that it reads."""
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._stop:
            self.close(state)

    def close(self, state: Any) -> None:
        """Ends a trace that is running, once the steps in flight are done."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
