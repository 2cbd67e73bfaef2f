"""Settings of the workers of phases that need no accelerator."""

from dataclasses import dataclass, field
from typing import Literal

from frame_jax.config.base import check_bounds, number, require


@dataclass(frozen=True)
class WorkersConfig:
    """What works on the parts of a corpus: tokens, rows, manifests. It changes no result.

    Attributes:
        engine: `local`: worker processes of this host (of every host, each its share, under
            parallel.distributed); `ray`: tasks of a Ray cluster whose nodes share the run
            directory, see docs/workers.md.
        count: Worker processes of a host (`local`); null takes as many as it has cores, if memory
            allows, and none for little work.
        ray_address: Address of the cluster, such as `auto` or `ray://head:10001`; null takes that
            of the variable RAY_ADDRESS, or starts a cluster of this machine alone.
        ray_resources: What a task asks for, such as `{CPU: 1, memory: 2e9}`.
    """

    engine: Literal["local", "ray"] = "local"
    count: int | None = number(None, least=1)
    ray_address: str | None = None
    ray_resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})

    def __post_init__(self) -> None:
        check_bounds(self, "workers.")
        require(
            self.engine == "ray" or self.ray_address is None,
            "workers.ray_address is of no use to workers.engine: local: say `engine: ray`, too",
        )
