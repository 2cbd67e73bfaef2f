"""FRAME, the four-quadrant multi-stage pretraining strategy, in JAX and Flax.

The names below are the public API; every other module is internal and may change in any release.
They are loaded when they are first used, so that `import frame_jax` is quick and leaves JAX alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frame_jax.api import (
        ModelPair,
        Partition,
        TextScores,
        UserError,
        curriculum_order,
        load_models,
        load_run_models,
        partition_table,
        score_texts,
    )

__version__ = "0.2.0"

__all__ = [
    "ModelPair",
    "Partition",
    "TextScores",
    "UserError",
    "curriculum_order",
    "load_models",
    "load_run_models",
    "partition_table",
    "score_texts",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from frame_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
