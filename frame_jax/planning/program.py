"""The text of a compiled program in; its kernels, transfers and least seconds out.

The text is XLA's, after optimisation and scheduling (`compiled.as_text()`): the order of a
computation's lines is the order in which a device starts them. Bodies of loops count as often as
they run; a loop whose turns are known only at run time counts once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
COLLECTIVES = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "iota", "opt-barrier", "domain", "rng-get-and-update-state",
}  # fmt: skip
PART_READERS = {"dynamic-slice", "slice", "gather"}
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line.

    Attributes:
        name: Its name.
        kind: What it does, e.g. `fusion`.
        shape: The text of its result's shape.
        operands: Names of what it reads; of a constant or a parameter, the text in the brackets.
        rest: The text after them.
        root: Whether it is what its computation returns.
    """

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, attribute: str = "calls") -> str | None:
        """The computation it names as that."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


Computation = dict[str, Operation]


def size(shape: str) -> float:
    """Bytes of all arrays in the text of a shape.

    >>> size("(bf16[2,3]{1,0}, f32[], pred[8]{0})")
    24.0
    """
    return float(sum(width(kind) * math.prod(dims) for kind, dims in arrays(shape)))


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Type and dimensions of the arrays in the text of a shape."""
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in ARRAY.findall(shape)]


def width(kind: str) -> float:
    """Bytes of one number of that type."""
    bits = re.match(r"[a-z]+(\d+)", kind)
    return BYTES[kind] if kind in BYTES else int(bits[1]) / 8 if bits else 0


def split_line(text: str) -> tuple[str, str, str, str]:
    """Shape, kind, operands and rest of what stands right of `=`."""
    end = closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, tail = text[:end], text[end:].lstrip()
    kind, _, inside = tail.partition("(")
    stop = closing("(" + inside, 0) - 1
    return shape, kind, inside[:stop], inside[stop + 1 :]


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket: {text[:80]}")


class Program:
    """A compiled program.

    Attributes:
        computations: By name, each its operations by name in the order of the text.
        entry: Name of the first to run.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        inside: Computation | None = None
        for line in text.splitlines():
            if header := HEADER.match(line):
                inside = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                inside = None
            elif inside is not None and (found := LINE.match(line)):
                shape, kind, operands, rest = split_line(found[3])
                names = tuple(re.findall(r"%([\w.\-]+)", operands))
                operation = Operation(found[2], kind, shape, names, rest, bool(found[1]))
                if kind in ("parameter", "constant"):
                    operation = dataclasses.replace(operation, operands=(operands,))
                inside[operation.name] = operation

    def walk(self, name: str = "", times: int = 1) -> Iterator[tuple[str, Operation, int]]:
        """Computation, operation, and how often it runs, for all that a device does; inside
        fusions, too."""
        name = name or self.entry
        for operation in self.computations[name].values():
            yield name, operation, times
            turns = self.trips(operation) if operation.kind == "while" else 1
            for attribute in ("body", "calls", "true_computation", "false_computation"):
                if called := operation.called(attribute):
                    yield from self.walk(called, times * turns)

    def trips(self, loop: Operation) -> int:
        """How often the body of a loop runs; 1 where only the run knows.

        The compiler for GPUs writes the number down. For TPUs it is what the condition compares
        with; the loops of JAX start at 0.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(found[1])
        condition = self.computations[str(loop.called("condition"))]
        root = next(operation for operation in condition.values() if operation.root)
        limit = condition.get(root.operands[-1]) if root.operands else None
        if limit and limit.kind == "constant" and "direction=LT" in root.rest:
            return int(limit.operands[0])
        return 1

    def kernels(self) -> Counter[str]:
        """Library kernels in the program's text, and how often each stands there."""
        targets = Counter(
            found[1]
            for _, operation, _ in self.walk()
            if (found := re.search(r'custom_call_target="([^"]+)"', operation.rest))
        )
        return targets

    def operand_sizes(self, name: str, operation: Operation) -> list[float]:
        """Bytes of what an operation of that computation reads."""
        inside = self.computations[name]
        return [size(inside[x].shape) if x in inside else 0.0 for x in operation.operands]

    def collective(self, operation: Operation) -> tuple[str, Operation] | None:
        """Which collective an operation is or starts, and the operation that describes it."""
        kind = operation.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            return kind, operation
        if operation.kind == "async-start" and (called := operation.called()):
            for inner in self.computations[called].values():
                if inner.kind in COLLECTIVES:
                    return inner.kind, inner
        return None

    def read_and_written(self, name: str, operation: Operation) -> float:
        """Bytes between device and memory: operands once, results once; of a slice or an update,
        the part."""
        sizes = self.operand_sizes(name, operation)
        if operation.kind in PART_READERS:
            return 2 * size(operation.shape)
        if operation.kind == "dynamic-update-slice":
            return 2 * sizes[1]
        called = operation.called() if operation.kind == "fusion" else None
        if called is None:
            return sum(sizes) + size(operation.shape)
        inside = self.computations[called]
        users: dict[str, list[Operation]] = {}
        for inner in inside.values():
            for operand in inner.operands:
                users.setdefault(operand, []).append(inner)
        total = 0.0
        for inner in inside.values():
            if inner.kind == "parameter":
                total += part_read(inner, users)
            if inner.root:
                total += sum(part_written(inside, root) for root in roots(inside, inner))
        return total


def part_read(parameter: Operation, users: dict[str, list[Operation]]) -> float:
    """Bytes that a fusion reads of one of its operands."""
    total, names = 0.0, [parameter.name]
    while names:
        name = names.pop()
        for user in users.get(name, []):
            if user.kind == "bitcast":
                names.append(user.name)
            elif user.kind in PART_READERS and user.operands[0] == name:
                total += size(user.shape)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
                continue  # written in place
            else:
                return size(parameter.shape)
    return min(total, size(parameter.shape))


def roots(inside: Computation, root: Operation) -> list[Operation]:
    """The results of a fusion."""
    if root.kind == "tuple":
        return [inside[name] for name in root.operands]
    return [root]


def part_written(inside: Computation, root: Operation) -> float:
    """Bytes that a fusion writes of one of its results."""
    found = root
    while found.kind == "bitcast" and found.operands[0] in inside:
        found = inside[found.operands[0]]
    if found.kind == "dynamic-update-slice":
        return size(inside[found.operands[1]].shape)
    return size(root.shape)


def matrix_flops(inside: Computation, operation: Operation) -> float:
    """FLOPs of a matrix product, or of attention by cuDNN over rows of one document each."""
    target = re.search(r'custom_call_target="([^"]+)"', operation.rest)
    if target and "fmha" in target[1]:
        _, (rows, length, heads, head_dim) = arrays(inside[operation.operands[0]].shape)[0]
        products = 5 if "Backward" in target[1] else 2
        return products * 2 * rows * heads * length * length / 2 * head_dim
    is_library = bool(target and "gemm" in target[1]) or (target and "$matmul" in target[1])
    if operation.kind != "dot" and not is_library:
        return 0.0
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', operation.rest)
    left = arrays(inside[operation.operands[0]].shape)[0][1]
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    result = math.prod(arrays(operation.shape)[0][1])
    return 2.0 * result * math.prod(left[axis] for axis in axes)


def group(operation: Operation, devices: int) -> list[int]:
    """The devices that one of a collective's groups joins, by number.

    XLA writes groups as lists, as a reshaped and transposed row of numbers, or as axes of a mesh.
    """
    text = operation.rest
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\S+)? ?\{([^}]*)\}", text
    ):
        sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", found[1]))
        joined = re.findall(r"'?([\w.]+)'?", found[2])
        names = list(sizes)
        numbers = np.arange(devices).reshape([int(n) for n in sizes.values()])
        order = [names.index(n) for n in names if n not in joined]
        order += [names.index(n) for n in joined if n in names]
        ways = math.prod(int(sizes[n]) for n in joined if n in sizes)
        return [int(n) for n in numbers.transpose(order).reshape(-1, ways)[0]]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        dims = [int(n) for n in found[3].split(",")]
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            numbers = numbers.transpose([int(n) for n in found[4].split(",")])
        return [int(n) for n in numbers.reshape(int(found[1]), int(found[2]))[0]]
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", text):
        return [int(n) for n in found[1].split(",") if n]
    return list(range(devices))


@dataclasses.dataclass(frozen=True)
class Machine:
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


def received(kind: str, operands: float, results: float, members: int) -> float:
    """Bytes that a device receives at least in a collective among so many."""
    others = (members - 1) / members
    match kind:
        case "all-gather":
            return results * others
        case "reduce-scatter":
            return operands * others
        case "all-reduce":
            return 2 * operands * others
        case "collective-permute":
            return operands
        case _:
            return operands * others


@dataclasses.dataclass
class Transfers:
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
class Clock:
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


@dataclasses.dataclass(frozen=True)
class Bound:
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
    transfers: dict[str, Transfers]


def lower_bound(program: Program, machine: Machine) -> Bound:
    """The least seconds of a program: each operation at the higher of its matrix work at the peak
    of the matrix units and its bytes at the peak of the memory, collectives at the peak of the
    links, in the order and with the waiting that the schedule has.

    Caches, launches, work between tiles and clocks below boost are what it leaves out.
    """
    transfers: dict[str, Transfers] = {}

    @functools.cache
    def flops_of(name: str) -> float:
        inside = program.computations[name]
        return sum(matrix_flops(inside, x) + nested(x) for x in inside.values())

    def nested(operation: Operation) -> float:
        called = operation.called() if operation.kind == "fusion" else None
        return flops_of(called) if called else 0.0

    def communicate(name: str, operation: Operation, times: int) -> tuple[str, float, float]:
        kind, described = program.collective(operation) or ("", operation)
        inside = name if described is operation else str(operation.called())
        operands = sum(program.operand_sizes(inside, described))
        results = size(described.shape)
        if described.kind.endswith("-start") and kind == "all-gather":
            results -= operands  # a start's shape names the operands as well
        members = group(described, machine.devices)
        amount = received(kind, operands, results, len(members))
        hosts = len({member // machine.host for member in members})
        seconds = amount / machine.link
        if hosts > 1:
            a_host = len(members) / hosts
            full = amount * len(members) / max(1, len(members) - 1)
            seconds = max(seconds, full * (hosts - 1) / hosts / (a_host * machine.network))
        entry = transfers.setdefault(kind, Transfers())
        entry.bytes += amount * times
        entry.seconds += seconds * times
        return kind, amount * times, seconds

    def run(name: str, times: int) -> Clock:
        """One turn of a computation; `times` is how often it runs in all."""
        clock, inside = Clock(), program.computations[name]
        running: dict[str, tuple[str, float, float, float]] = {}
        for operation in inside.values():
            if operation.kind in NO_WORK:
                continue
            if operation.kind == "while":
                turns = program.trips(operation)
                one = run(str(operation.called("body")), times * turns)
                add(clock, one, turns)
            elif operation.kind in ("call", "conditional"):
                names = [operation.called(x) for x in ("to_apply", "calls", "true_computation")]
                for called in filter(None, names):
                    add(clock, run(called, times), 1)
            elif program.collective(operation):
                kind, amount, seconds = communicate(name, operation, times)
                end = max(clock.now, clock.links) + seconds
                clock.links = end
                if operation.kind.endswith("-start"):
                    running[operation.name] = (kind, amount, end, clock.busy)
                else:
                    clock.now = end
            elif operation.kind.endswith("-done"):
                if found := running.pop(operation.operands[0], None):
                    kind, amount, end, busy = found
                    transfers[kind].bytes_hidden += amount if clock.busy > busy else 0
                    clock.now = max(clock.now, end)
            elif not operation.kind.endswith("-update"):
                fused = operation.called() if operation.kind == "fusion" else None
                for inner in program.computations[fused].values() if fused else ():
                    if program.collective(inner):  # TPUs have transfers inside of products
                        kind, amount, _ = communicate(str(fused), inner, times)
                        transfers[kind].bytes_hidden += amount
                flops = matrix_flops(inside, operation) + nested(operation)
                moved = program.read_and_written(name, operation)
                seconds = max(flops / machine.flops, moved / machine.memory)
                one = Clock(seconds, 0.0, seconds, flops, moved)
                add(clock, one, 1)
        return clock

    def add(clock: Clock, one: Clock, turns: int) -> None:
        clock.now += turns * one.now
        clock.busy += turns * one.busy
        clock.matrix_flops += turns * one.matrix_flops
        clock.memory_bytes += turns * one.memory_bytes

    whole = run(program.entry, 1)
    seconds = max(whole.now, whole.links)
    return Bound(seconds, whole.busy, whole.matrix_flops, whole.memory_bytes, transfers)


def library_workspace(program: Program) -> float:
    """Bytes that cuDNN's attention takes beside what the compiler plans, of the largest call.

    The compiler asks cuDNN only on a device. By cudnn-frontend's source, the backward pass sums dQ
    in float32 and, where query heads share keys, holds dK and dV of every query head in bfloat16;
    packed rows have that for the longest row at every place for a segment.
    """
    largest = 0.0
    for name, operation, _ in program.walk():
        if "fmha" in operation.rest and "Backward" in operation.rest.partition("metadata")[0]:
            inside = program.computations[name]
            _, (rows, length, heads, head_dim) = arrays(inside[operation.operands[0]].shape)[0]
            shared = arrays(inside[operation.operands[1]].shape)[0][1][2] != heads
            config = re.search(r"backend_config=(\{.*\})", operation.rest)
            settings = json.loads(config[1])["cudnn_fmha_backend_config"] if config else {}
            places = rows * max(1, int(settings.get("max_seg_per_batch", 1)))
            number = (4 + 4 * shared) * head_dim + 4  # with one sum of the softmax's derivative
            largest = max(largest, float(places * length * heads * number))
    return largest
