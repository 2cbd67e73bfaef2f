"""GPUs by name: what the compiler must know of a chip that is not there, and what it could do.

Numbers are the makers', from the data sheets of the A100, H100, H200 and B200 and of the DGX
machines that hold eight of them; a compiler's description adds the size of an SM's parts, from the
tuning guides for Ampere, Hopper and Blackwell. What a chip reaches is less.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One GPU.

    Attributes:
        kind: JAX's `device_kind`; its FLOPs a second are in `models.flops.PEAK_FLOPS`.
        memory_gib: What the device has.
        memory_bandwidth: Bytes a second between device and memory.
        link: Bytes a second that the device receives from others in its host, over NVLink.
        network: Bytes a second that the host receives from other hosts, for each of its devices.
        capability: Major version of the compute capability.
        cores: Streaming multiprocessors.
        units: 32-bit units of one.
        cache: Bytes of the second-level cache.
        shared: Bytes of shared memory of a multiprocessor.
        clock_ghz: Boost clock.
    """

    kind: str
    memory_gib: float
    memory_bandwidth: float
    link: float
    network: float
    capability: int
    cores: int
    units: int
    cache: int
    shared: int
    clock_ghz: float

    def target_config(self) -> str:
        """The text that `get_topology_desc(platform="cuda", target_config=...)` wants."""
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": self.units,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": round(self.memory_bandwidth),
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": round(self.memory_gib * GIB),
            "shared_memory_per_block_optin": self.shared - 1024,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        device = " ".join(f"{name}: {value}" for name, value in fields.items())
        return (
            f"gpu_device_info {{ {device} "
            f"cuda_compute_capability {{ major: {self.capability} }} }} "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } '
            f'runtime_version {{ major: 13 }} device_description_str: "{self.kind}"'
        )


MIB = 2**20
CHIPS = {
    "a100": Chip(
        "NVIDIA A100-SXM4-80GB", 79.2, 2.039e12, 300e9, 25e9, 8, 108, 64, 40 * MIB, 164 * 1024, 1.41
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3", 79.1, 3.35e12, 450e9, 50e9, 9, 132, 128, 50 * MIB, 228 * 1024, 1.98
    ),
    "h200": Chip(
        "NVIDIA H200", 139.8, 4.8e12, 450e9, 50e9, 9, 132, 128, 50 * MIB, 228 * 1024, 1.98
    ),
    "b200": Chip(
        "NVIDIA B200", 178.0, 7.7e12, 900e9, 50e9, 10, 148, 128, 126 * MIB, 228 * 1024, 1.965
    ),
}
