"""Entry point of `python -m frame_jax.verify_order`."""

from frame_jax.export.order.verify import main
from frame_jax.run.program_exit import run_main

if __name__ == "__main__":
    run_main(main)
