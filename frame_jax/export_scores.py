"""The door of `python -m frame_jax.export_scores`."""

import sys

from frame_jax.export.scores import main

if __name__ == "__main__":
    sys.exit(main())
