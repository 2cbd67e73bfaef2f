"""The door of `python -m frame_jax.verify_order`."""

import sys

from frame_jax.export.order.verify import main

if __name__ == "__main__":
    sys.exit(main())
