"""A compiled program and a machine in; the least seconds and the transfers of a step out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import NamedTuple

from compiled_programs.collectives import collective_group, collectives, transfers
from compiled_programs.hlo_program import (
    NO_WORK,
    Computation,
    HloProgram,
    Operation,
    shape_arrays,
)


def matrix_flops(inside: Computation, operation: Operation) -> float:
    """FLOPs of a matrix product, of attention by cuDNN over rows of one document each, or of a
    Pallas kernel through Triton that says them in its metadata as `flops`."""
    target = operation.target()
    if "fmha" in target:
        _, (rows, length, heads, head_dim) = shape_arrays(inside[operation.operands[0]].shape)[0]
        products = 5 if "Backward" in target else 2
        return products * 2 * rows * heads * length * length / 2 * head_dim
    if flops := operation.kernel().get("flops"):
        return float(flops)
    if operation.kind != "dot" and "gemm" not in target and "$matmul" not in target:
        return 0.0
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', operation.rest)
    left = shape_arrays(inside[operation.operands[0]].shape)[0][1]
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    result = math.prod(shape_arrays(operation.shape)[0][1])
    return 2.0 * result * math.prod(left[axis] for axis in axes)


PRODUCTS = {"dot", "convolution"}


@dataclasses.dataclass(frozen=True)
class MachineLimits:
    """What devices could do at best.

    Attributes:
        flops: Matrix FLOPs a second of a device, in bfloat16.
        memory: Bytes a second of its memory.
        link: Bytes a second that it receives from devices of its host.
        network: Bytes a second that a host receives from others, for each of its devices.
        devices: How many.
        host: Devices of a host.
    """

    flops: float
    memory: float
    link: float
    network: float
    devices: int
    host: int


@dataclasses.dataclass
class CollectiveTotals:
    """All collectives of one kind.

    Attributes:
        bytes: That a device receives in a step.
        bytes_hidden: Of them, those of collectives that have work scheduled while they run.
        seconds: At best, if nothing else uses the links.
    """

    bytes: float = 0.0
    bytes_hidden: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class DeviceClock:
    """A device's time.

    Attributes:
        now: Seconds of work started so far, and of waiting.
        links: When its links are free.
        busy: Seconds of work alone.
        matrix_flops: FLOPs of matrix products and attention.
        memory_bytes: Bytes between device and memory.
    """

    now: float = 0.0
    links: float = 0.0
    busy: float = 0.0
    matrix_flops: float = 0.0
    memory_bytes: float = 0.0

    def add(self, one: DeviceClock, turns: int = 1) -> None:
        """Goes on by `turns` of another clock's time; its links are its own."""
        self.now += turns * one.now
        self.busy += turns * one.busy
        self.matrix_flops += turns * one.matrix_flops
        self.memory_bytes += turns * one.memory_bytes


class PendingTransfer(NamedTuple):
    """Collectives under way.

    Attributes:
        bytes: That a device receives, of all their runs, by what they are for.
        end: When they are done.
        busy: The clock's `busy` when they started.
    """

    bytes: dict[str, float]
    end: float
    busy: float


@dataclasses.dataclass(frozen=True)
class RooflineEstimate:
    """What a step takes at least.

    Attributes:
        seconds: The whole, transfers beside work as the program schedules them.
        busy_seconds: Work alone.
        matrix_flops: FLOPs of matrix products, and of attention as if each row were one document.
        memory_bytes: Bytes between a device and its memory.
        transfers: By kind of collective.
    """

    seconds: float
    busy_seconds: float
    matrix_flops: float
    memory_bytes: float
    transfers: dict[str, CollectiveTotals]


class HloSimulator:
    """A device that goes through a program in the order of its text.

    Attributes:
        program: What it runs.
        machine: What it and its links could do.
        transfers: The collectives so far, by kind.
    """

    def __init__(self, program: HloProgram, machine: MachineLimits):
        self.program, self.machine = program, machine
        self.transfers: dict[str, CollectiveTotals] = {}
        self._flops: dict[str, float] = {}

    def simulate(self, name: str, times: int) -> DeviceClock:
        """One turn of a computation; `times` is how often it runs in all."""
        clock, program = DeviceClock(), self.program
        running: dict[str, PendingTransfer] = {}
        for operation in program.computations[name].values():
            kind = operation.kind
            if kind in NO_WORK or kind.endswith("-update"):
                continue
            if kind == "while":
                turns = program.trip_count(operation)
                clock.add(self.simulate(str(operation.called("body")), times * turns), turns)
            elif kind in ("call", "conditional"):
                called = (operation.called(x) for x in ("to_apply", "calls", "true_computation"))
                for inner in filter(None, called):
                    clock.add(self.simulate(inner, times))
            elif kind != "fusion" and collectives(program, name, operation):
                flight = self.start_collectives(name, operation, times, clock)
                if kind.endswith("-start"):
                    running[operation.name] = flight
                else:
                    clock.now = flight.end
            elif kind.endswith("-done"):
                if ended := running.pop(operation.operands[0], None):
                    if clock.busy > ended.busy:
                        self.hide(ended.bytes)
                    clock.now = max(clock.now, ended.end)
            else:
                clock.add(self.run_operation(name, operation, times))
        return clock

    def start_collectives(
        self, name: str, operation: Operation, times: int, clock: DeviceClock
    ) -> PendingTransfer:
        """What an operation moves, under way from when the links are free."""
        amounts, seconds = self.count_collectives(name, operation, times)
        clock.links = max(clock.now, clock.links) + seconds
        return PendingTransfer(amounts, clock.links, clock.busy)

    def run_operation(self, name: str, operation: Operation, times: int) -> DeviceClock:
        """An operation alone: the higher of its matrix work and its bytes, and of what a fusion
        moves, as on TPUs some do, beside its products or instead of any."""
        program, machine = self.program, self.machine
        flops = self.flops(program.computations[name], operation)
        moved = program.read_and_written(name, operation)
        seconds = max(flops / machine.flops, moved / machine.memory)
        amounts, waiting = self.count_collectives(name, operation, times)
        called = operation.called() if amounts else None
        if called and any(x.kind in PRODUCTS for _, x, _ in program.walk_operations(called)):
            self.hide(amounts)
        return DeviceClock(max(seconds, waiting), 0.0, seconds, flops, moved)

    def hide(self, amounts: dict[str, float]) -> None:
        """Notes that there is work beside so many bytes."""
        for kind, amount in amounts.items():
            self.transfers[kind].bytes_hidden += amount

    def flops(self, inside: Computation, operation: Operation) -> float:
        """Of an operation, and of what is fused in it."""
        called = operation.called() if operation.kind == "fusion" else None
        if called and called not in self._flops:
            fused = self.program.computations[called]
            self._flops[called] = sum(self.flops(fused, inner) for inner in fused.values())
        return matrix_flops(inside, operation) + (self._flops[called] if called else 0.0)

    def count_collectives(
        self, name: str, operation: Operation, times: int
    ) -> tuple[dict[str, float], float]:
        """Counts the collectives of an operation: bytes received in all, by what they are for, and
        seconds of one run at best."""
        machine, total, waiting = self.machine, dict[str, float](), 0.0
        for inside, found, turns in collectives(self.program, name, operation):
            members = collective_group(found, machine.devices)
            hosts = len({member // machine.host for member in members})
            for kind, amount in transfers(self.program, inside, found, len(members)).items():
                seconds = amount / machine.link
                if hosts > 1:
                    a_host = len(members) / hosts
                    full = amount * len(members) / max(1, len(members) - 1)
                    between = full * (hosts - 1) / hosts / (a_host * machine.network)
                    seconds = max(seconds, between)
                entry = self.transfers.setdefault(kind, CollectiveTotals())
                entry.bytes += amount * turns * times
                entry.seconds += seconds * turns * times
                total[kind] = total.get(kind, 0.0) + amount * turns * times
                waiting += seconds * turns
        return total, waiting


def estimate_step_time(program: HloProgram, machine: MachineLimits) -> RooflineEstimate:
    """The least seconds of a program: each operation at the higher of its matrix work at the peak
    of the matrix units and its bytes at the peak of the memory, collectives at the peak of the
    links, in the order and with the waiting that the schedule has.

    Caches, launches, work between tiles and clocks below boost are what it leaves out.
    """
    schedule = HloSimulator(program, machine)
    whole = schedule.simulate(program.entry, 1)
    seconds = max(whole.now, whole.links)
    return RooflineEstimate(
        seconds, whole.busy, whole.matrix_flops, whole.memory_bytes, schedule.transfers
    )


def library_workspace(program: HloProgram) -> float:
    """Bytes that cuDNN's attention takes beside what the compiler plans, of the largest call.

    The compiler asks cuDNN only on a device. By cudnn-frontend's source, the backward pass sums dQ
    in float32 and, where query heads share keys, holds dK and dV of every query head in bfloat16;
    packed rows have that for the longest row at every place for a segment.
    """
    largest = 0.0
    for name, operation, _ in program.walk_operations():
        if "fmha" in (target := operation.target()) and "Backward" in target:
            inside = program.computations[name]
            _, (rows, length, heads, head_dim) = shape_arrays(inside[operation.operands[0]].shape)[
                0
            ]
            shared = shape_arrays(inside[operation.operands[1]].shape)[0][1][2] != heads
            config = re.search(r"backend_config=(\{.*\})", operation.rest)
            settings = json.loads(config[1])["cudnn_fmha_backend_config"] if config else {}
            segment_slots = rows * max(1, int(settings.get("max_seg_per_batch", 1)))
            number = (4 + 4 * shared) * head_dim + 4  # with one sum of the softmax's derivative
            largest = max(largest, float(segment_slots * length * heads * number))
    return largest
