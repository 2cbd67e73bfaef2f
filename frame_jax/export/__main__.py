"""The door of `python -m frame_jax.export`."""

import sys

from frame_jax.export.checkpoint import main

sys.exit(main())
