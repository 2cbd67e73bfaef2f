"""The door of `python -m frame_jax.verify_order`."""

from frame_jax.export.order.verify import main
from frame_jax.run.ending import run_to_end

if __name__ == "__main__":
    run_to_end(main)
