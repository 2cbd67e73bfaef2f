"""The door of `python -m frame_jax.export_order`."""

from frame_jax.export.order.export import main
from frame_jax.run.ending import run_to_end

if __name__ == "__main__":
    run_to_end(main)
