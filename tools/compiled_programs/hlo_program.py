"""The text of a compiled program in; its operations, kernels and transfers out.

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

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "iota", "opt-barrier", "domain", "rng-get-and-update-state",
}  # fmt: skip
TRITON = "__gpu$xla.gpu.triton"
PART_READERS = {"dynamic-slice", "slice", "gather"}
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


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

    @functools.cached_property
    def attributes(self) -> str:
        """`rest` without what stands in quotation marks: kernels hold whole programs there."""
        return QUOTED.sub('""', self.rest)

    def called(self, attribute: str = "calls") -> str | None:
        """The computation it names as that."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def target(self) -> str:
        """What a custom call runs; empty for anything else."""
        is_call = self.kind == "custom-call"
        found = re.search(r'custom_call_target="([^"]+)"', self.rest) if is_call else None
        return found[1] if found else ""

    def kernel(self) -> dict[str, str]:
        """Of a Pallas kernel through Triton, its `name`, and what its author says of it (`flops`).

        Both stand beside the kernel's program, in which a quotation mark is written as `\\22`.
        """
        if self.target() != TRITON:
            return {}
        name = re.search(r'\bname = "([^"]*)"', self.rest)
        metadata = re.search(r'\bserialized_metadata = "([^"]*)"', self.rest)
        return (json.loads(unescaped(metadata[1])) if metadata else {}) | {
            "name": name[1] if name else TRITON
        }


Computation = dict[str, Operation]


def unescaped(text: str) -> str:
    r"""Text whose odd characters MLIR has written as hexadecimal bytes.

    >>> unescaped(r"{\22flops\22: \2265536\22}")
    '{"flops": "65536"}'
    """
    return re.sub(r"\\([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), text)


def shape_bytes(shape: str) -> float:
    """Bytes of all arrays in the text of a shape.

    >>> shape_bytes("(bf16[2,3]{1,0}, f32[], pred[8]{0})")
    24.0
    """
    return float(sum(type_bytes(kind) * math.prod(dims) for kind, dims in shape_arrays(shape)))


def shape_arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Type and dimensions of the arrays in the text of a shape."""
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in ARRAY.findall(shape)]


def type_bytes(kind: str) -> float:
    """Bytes of one number of that type."""
    bits = re.match(r"[a-z]+(\d+)", kind)
    return BYTES[kind] if kind in BYTES else int(bits[1]) / 8 if bits else 0


def split_line(text: str) -> tuple[str, str, str, str]:
    """Shape, kind, operands and rest of what stands right of `=`."""
    end = closing_bracket(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, tail = text[:end], text[end:].lstrip()
    kind, _, inside = tail.partition("(")
    stop = closing_bracket("(" + inside, 0) - 1
    return shape, kind, inside[:stop], inside[stop + 1 :]


def closing_bracket(text: str, start: int) -> int:
    """Where the bracket at `start` is closed."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"no closing bracket: {text[:80]}")


def whole_lines(text: str) -> Iterator[str]:
    """The lines of all computations: each header, and each operation with all its attributes.

    Attributes of a kernel for TPUs may go on in further lines, which may start with a bracket.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        header = HEADER.match(line)
        if header or line == "}" or LINE.match(line):
            yield from ("\n".join(lines),) if lines else ()
            lines = [] if line == "}" else [line]
        elif lines:
            lines.append(line)


class HloProgram:
    """A compiled program.

    Attributes:
        computations: By name, each its operations by name in the order of the text.
        entry: Name of the first to run.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        inside: Computation = {}
        for line in whole_lines(text):
            if header := HEADER.match(line):
                inside = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif found := LINE.match(line):
                shape, kind, operands, rest = split_line(found[3])
                names = tuple(re.findall(r"%([\w.\-]+)", operands))
                operation = Operation(found[2], kind, shape, names, rest, bool(found[1]))
                if kind in ("parameter", "constant"):
                    operation = dataclasses.replace(operation, operands=(operands,))
                inside[operation.name] = operation

    def walk_operations(
        self, name: str = "", times: int = 1
    ) -> Iterator[tuple[str, Operation, int]]:
        """Computation, operation, and how often it runs, for all that a device does; inside
        fusions and what runs beside them, too."""
        name = name or self.entry
        for operation in self.computations[name].values():
            yield name, operation, times
            if operation.kind in ("async-update", "async-done"):
                continue  # of what was started
            turns = self.trip_count(operation) if operation.kind == "while" else 1
            for attribute in ("body", "calls", "true_computation", "false_computation"):
                if called := operation.called(attribute):
                    yield from self.walk_operations(called, times * turns)

    def trip_count(self, loop: Operation) -> int:
        """How often the body of a loop runs; 1 where only the run knows.

        The compiler for GPUs writes the number down. For TPUs it is what the condition compares
        with, over what the body adds: products that gather as they go take two shards a turn. The
        loops of JAX and of the compiler start at 0.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(found[1])
        condition = self.computations[str(loop.called("condition"))]
        root = next(operation for operation in condition.values() if operation.root)
        limit = condition.get(root.operands[-1]) if root.operands else None
        if limit is None or limit.kind != "constant" or "direction=LT" not in root.rest:
            return 1
        turn = condition.get(root.operands[0])
        return -(-int(limit.operands[0]) // (self.loop_stride(loop, turn) if turn else 1))

    def loop_stride(self, loop: Operation, turn: Operation) -> int:
        """What the body of a loop adds to the number that its condition reads as `turn`; 1 where
        it is anything but a constant."""
        index = re.search(r"index=(\d+)", turn.rest)
        body = self.computations[str(loop.called("body"))]
        root = next(operation for operation in body.values() if operation.root)
        if index is None or root.kind != "tuple":
            return 1
        added = body.get(root.operands[int(index[1])])
        if added is None or added.kind != "add":
            return 1
        terms = [body[name] for name in added.operands if name in body]
        constants = [int(x.operands[0]) for x in terms if x.kind == "constant"]
        return constants[0] if constants and constants[0] > 0 else 1

    def kernels(self) -> Counter[str]:
        """Kernels in the program's text, and how often each stands there: a library's by what is
        called, Pallas's through Triton by their own names."""
        return Counter(
            operation.kernel().get("name", operation.target())
            for _, operation, _ in self.walk_operations()
            if operation.target()
        )

    def operand_sizes(self, name: str, operation: Operation) -> list[float]:
        """Bytes of what an operation of that computation reads."""
        inside = self.computations[name]
        return [shape_bytes(inside[x].shape) if x in inside else 0.0 for x in operation.operands]

    def read_and_written(self, name: str, operation: Operation) -> float:
        """Bytes between device and memory: operands once, results once; of a slice or an update,
        the part. A kernel that reads a part of an operand counts with all of it."""
        sizes = self.operand_sizes(name, operation)
        if operation.kind in PART_READERS:
            return 2 * shape_bytes(operation.shape)
        if operation.kind == "dynamic-update-slice":
            return 2 * sizes[1]
        called = operation.called() if operation.kind == "fusion" else None
        if called is None:
            read = dict(zip(operation.operands, sizes, strict=True))
            return sum(read.values()) + shape_bytes(operation.shape)
        inside = self.computations[called]
        users, total = operand_users(inside), 0.0
        for inner in inside.values():
            if inner.kind == "parameter":
                total += part_read(inner, users)
            if inner.root:
                total += sum(part_written(inside, root) for root in fusion_results(inside, inner))
        return total


def operand_users(inside: Computation) -> dict[str, list[Operation]]:
    """By name, the operations of a computation that read what has that name."""
    users: dict[str, list[Operation]] = {}
    for operation in inside.values():
        for operand in dict.fromkeys(operation.operands):
            users.setdefault(operand, []).append(operation)
    return users


def part_read(parameter: Operation, users: dict[str, list[Operation]]) -> float:
    """Bytes that a fusion reads of one of its operands."""
    total, names = 0.0, [parameter.name]
    while names:
        name = names.pop()
        for user in users.get(name, []):
            if user.kind == "bitcast":
                names.append(user.name)
            elif user.kind in PART_READERS and user.operands[0] == name:
                total += shape_bytes(user.shape)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
                continue  # written in place
            else:
                return shape_bytes(parameter.shape)
    return min(total, shape_bytes(parameter.shape))


def fusion_results(inside: Computation, root: Operation) -> list[Operation]:
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
        return shape_bytes(inside[found.operands[1]].shape)
    return shape_bytes(root.shape)
