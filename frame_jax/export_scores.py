"""Entry point of `python -m frame_jax.export_scores`."""

from frame_jax.export.scores import main
from frame_jax.run.program_exit import run_main

if __name__ == "__main__":
    run_main(main)
