"""Settings of devices and processes."""

from dataclasses import dataclass
from typing import Literal

from frame_jax.config.base import check_bounds, number, require


@dataclass(frozen=True)
class ParallelConfig:
    """The device mesh and the processes. -1 takes the devices that are left.

    Attributes:
        slice: Pod slices, joined by the slower network; a replica of the model on each.
        data: Replicas of the model; the batch is split over them.
        fsdp: Shards of every parameter; the batch is split over them too.
        expert: Shards of the experts of a mixture; the batch is split over them too.
        tensor: Shards of heads and feed-forward columns.
        cpu_devices: Devices that JAX makes of the CPU for each process, where it has no
            accelerator; `auto` makes one of each core, at most 8, if mesh and batches divide by it.
        distributed: Start `jax.distributed` (several hosts); coordinator, count and index come from
            the cluster's environment, or from the fields below.
        coordinator_address: Address `host:port` of process 0, where the environment does not say.
        num_processes: Number of processes, likewise.
        process_id: Index of this process, likewise.
    """

    slice: int = 1
    data: int = 1
    fsdp: int = -1
    expert: int = 1
    tensor: int = 1
    cpu_devices: int | Literal["auto"] = "auto"
    distributed: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = number(None, least=1)
    process_id: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.slice, self.data, self.fsdp, self.expert, self.tensor)
        require(
            all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
            "parallel: slice, data, fsdp, expert, tensor must be positive, at most one of them -1, "
            f"not {sizes}",
        )
        address = "any:1" if self.coordinator_address is None else self.coordinator_address
        host, _, port = address.rpartition(":")
        require(
            host != "" and port.isdecimal() and 0 < int(port) < 1 << 16,
            f"parallel.coordinator_address must be host:port, not {self.coordinator_address!r}",
        )
        check_bounds(self, "parallel.")
        require(
            self.cpu_devices == "auto" or self.cpu_devices >= 1,
            f"parallel.cpu_devices must be `auto` or at least 1, not {self.cpu_devices}",
        )
        require(
            self.process_id is None or 0 <= self.process_id < (self.num_processes or float("inf")),
            "parallel.process_id must be at least 0 and below parallel.num_processes, not "
            f"{self.process_id}",
        )
