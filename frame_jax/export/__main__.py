"""Entry point of `python -m frame_jax.export`."""

from frame_jax.export.checkpoint import main
from frame_jax.run.program_exit import run_main

run_main(main)
