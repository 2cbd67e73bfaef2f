"""The door of `python -m frame_jax.export`."""

from frame_jax.export.checkpoint import main
from frame_jax.run.ending import run_to_end

run_to_end(main)
