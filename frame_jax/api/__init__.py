"""The public API: what `import frame_jax` offers to notebooks and other programs.

Functions here run on one process and write nothing but temporary files. What they have to say goes
to the logger `frame_jax`; bad input raises `UserError`.
"""

from frame_jax.api.curriculum import curriculum_order
from frame_jax.api.models import ModelPair, TextScores, load_models, load_run_models, score_texts
from frame_jax.api.partition import Partition, partition_table
from frame_jax.errors import UserError
