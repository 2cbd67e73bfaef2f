"""A compiled program's collectives: which there are, what each does, and which devices it joins."""

from __future__ import annotations

import math
import re

import numpy as np

from compiled_programs.hlo_program import (
    HloProgram,
    Operation,
    operand_users,
    part_read,
    shape_bytes,
)

COLLECTIVES = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
VIEWS = {"bitcast", "copy", "copy-done", "copy-start", "get-tuple-element"}


def collectives(
    program: HloProgram, name: str, operation: Operation
) -> list[tuple[str, Operation, int]]:
    """The collectives that an operation of computation `name` is, starts or has fused in it, each
    with the name of its own computation, however deep that is, and how often it runs."""
    if is_collective(operation):
        return [(name, operation, 1)]
    called = operation.called() if operation.kind in ("fusion", "async-start") else None
    return [x for x in program.walk_operations(called) if is_collective(x[1])] if called else []


def is_collective(operation: Operation) -> bool:
    """Whether an operation is a collective or its start."""
    return operation.kind.removesuffix("-start") in COLLECTIVES


def transfers(
    program: HloProgram, name: str, operation: Operation, members: int
) -> dict[str, float]:
    """Bytes that a device receives in a collective among so many, by what it is for.

    The compiler for TPUs writes many gathers as an all-reduce in which each device's shard stands
    among zeros, and scatters as an all-reduce of whose result a slice is read. They move what an
    all-reduce moves, and are named as what they are for.
    """
    kind = operation.kind.removesuffix("-start")
    sizes = program.operand_sizes(name, operation)
    if kind != "all-reduce":
        results = shape_bytes(operation.shape)
        if operation.kind == "all-gather-start":
            results -= sum(sizes)  # a start's shape names the operands as well
        return {kind: received_bytes(kind, sum(sizes), results, members)}
    found: dict[str, float] = {}
    for index, size in enumerate(sizes):
        role = all_reduce_role(program, name, operation, index)
        found[role] = found.get(role, 0.0) + received_bytes(kind, size, size, members)
    return found


def received_bytes(kind: str, operands: float, results: float, members: int) -> float:
    """Bytes that a device receives at least in a collective among so many."""
    others = (members - 1) / members
    match kind:
        case "all-gather":
            return results * others
        case "all-reduce":
            return 2 * operands * others
        case "collective-permute":
            return operands
        case _:
            return operands * others


def all_reduce_role(program: HloProgram, name: str, operation: Operation, index: int) -> str:
    """What one of an all-reduce's operands is summed for."""
    if is_among_zeros(program, name, operation.operands[index]):
        return "all-gather as all-reduce"
    if is_sliced(program, name, operation, index):
        return "reduce-scatter as all-reduce"
    return "all-reduce"


def is_among_zeros(program: HloProgram, name: str, operand: str) -> bool:
    """Whether an operand is one number everywhere, with something written into a part of it."""
    inside, outer, written = program.computations[name], None, False
    operation = inside.get(operand)
    while operation is not None and operation.kind != "broadcast":
        if operation.kind == "fusion" and outer is None:
            outer, inside = operation, program.computations[str(operation.called())]
            operation = next(inner for inner in inside.values() if inner.root)
        elif operation.kind == "parameter" and outer is not None:
            given, outer, inside = outer.operands, None, program.computations[name]
            operation = inside.get(given[int(operation.operands[0])])
        elif operation.kind in VIEWS or operation.kind == "dynamic-update-slice":
            written = written or operation.kind == "dynamic-update-slice"
            operation = inside.get(operation.operands[0])
        else:
            return False
    return operation is not None and written


def is_sliced(program: HloProgram, name: str, operation: Operation, index: int) -> bool:
    """Whether all that is read of one of an all-reduce's results is a part of it."""
    users, names, readers = operand_users(program.computations[name]), [operation.name], 0
    while names:
        value = names.pop()
        for user in users.get(value, []):
            if user.kind == "get-tuple-element" and f"index={index}" not in user.rest.split(", "):
                continue
            if user.kind in VIEWS:
                names.append(user.name)
            elif user.kind == "fusion":
                fused = program.computations[str(user.called())]
                number = str(user.operands.index(value))
                read = next(x for x in fused.values() if x.operands == (number,))
                if part_read(read, operand_users(fused)) >= shape_bytes(read.shape):
                    return False
                readers += 1
            elif user.kind == "dynamic-slice":
                readers += 1
            else:
                return False
    return readers > 0


def collective_group(operation: Operation, devices: int) -> list[int]:
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
