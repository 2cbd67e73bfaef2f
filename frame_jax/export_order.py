"""The door of `python -m frame_jax.export_order`."""

import sys

from frame_jax.export.order.export import main

if __name__ == "__main__":
    sys.exit(main())
