"""Settings of the workers of phases that need no accelerator."""

from dataclasses import dataclass
from typing import Literal

from frame_jax.config.base import number


@dataclass(frozen=True)
class WorkersConfig:
    """What works on the parts of a corpus.

    Attributes:
        engine: `local` or `ray`.
        count: Worker processes of a host.
    """

    engine: Literal["local", "ray"] = "local"
    count: int | None = number(None, least=1)
