"""What is read off a compiled program, on small programs whose costs are known by hand."""

from __future__ import annotations

import math

import pytest
from compiled_programs.hlo_program import (
    HloProgram,
    Operation,
    collective_group,
    shape_bytes,
    split_line,
)
from compiled_programs.roofline import MachineLimits, estimate_step_time, library_workspace

# Two turns of a loop that gathers a matrix over four devices while it multiplies, and adds a slice
# of a stack to the product; then a sum over all devices that nothing hides.
TEXT = """
HloModule jit_step, is_scheduled=true

%fused (param_0: f32[8,16], param_1: f32[2,8,16], param_2: s32[]) -> f32[8,16] {
  %param_1 = f32[2,8,16]{2,1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,8,16]{2,1,0} dynamic-slice(%param_1, %param_2, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %flat = f32[8,16]{1,0} bitcast(%slice)
  %param_0 = f32[8,16]{1,0} parameter(0)
  ROOT %add = f32[8,16]{1,0} add(%param_0, %flat)
}

%product (param_0: bf16[8,32], param_1: bf16[32,16]) -> f32[8,16] {
  %param_0 = bf16[8,32]{1,0} parameter(0)
  %param_1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot = f32[8,16]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%store (param_0: f32[2,8,16], param_1: f32[8,16], param_2: s32[]) -> f32[2,8,16] {
  %param_0 = f32[2,8,16]{2,1,0} parameter(0)
  %param_1 = f32[8,16]{1,0} parameter(1)
  %one = f32[1,8,16]{2,1,0} bitcast(%param_1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[2,8,16]{2,1,0} dynamic-update-slice(%param_0, %one, %param_2, %zero, %zero)
}

%body (state: (s32[], bf16[8,16], f32[2,8,16])) -> (s32[], bf16[8,16], f32[2,8,16]) {
  %state = (s32[], bf16[8,16], f32[2,8,16]) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %shard = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %stack = f32[2,8,16]{2,1,0} get-tuple-element(%state), index=2
  %rows = bf16[8,32]{1,0} constant({...})
  %ready = bf16[32,16]{1,0} constant({...})
  %gather-start = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) all-gather-start(%shard), replica_groups=[1,4]<=[4], dimensions={0}
  %gemm = f32[8,16]{1,0} fusion(%rows, %ready), kind=kCustom, calls=%product
  %gather = bf16[32,16]{1,0} all-gather-done(%gather-start)
  %sum = f32[8,16]{1,0} fusion(%gemm, %stack, %turn), kind=kLoop, calls=%fused
  %kept = f32[2,8,16]{2,1,0} fusion(%stack, %sum, %turn), kind=kLoop, calls=%store
  ROOT %next = (s32[], bf16[8,16], f32[2,8,16]) tuple(%turn, %shard, %kept)
}

%condition (state: (s32[], bf16[8,16], f32[2,8,16])) -> pred[] {
  %state = (s32[], bf16[8,16], f32[2,8,16]) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (start: (s32[], bf16[8,16], f32[2,8,16])) -> f32[100] {
  %start = (s32[], bf16[8,16], f32[2,8,16]) parameter(0)
  %loop = (s32[], bf16[8,16], f32[2,8,16]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %value = f32[100]{0} constant({...})
  %reduce-start = f32[100]{0} all-reduce-start(%value), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %reduced = f32[100]{0} all-reduce-done(%reduce-start)
}
"""  # noqa: E501


def test_work_and_transfers_are_counted_by_hand() -> None:
    machine = MachineLimits(flops=1e3, memory=1e3, link=1e3, network=1e3, devices=4, host=4)
    bound = estimate_step_time(HloProgram(TEXT), machine)
    product = 2 * 8 * 16 * 32
    operands = 2 * (8 * 32 + 32 * 16) + 4 * 8 * 16
    add = 4 * 8 * 16 * 3 + 4  # product, one slice of two, sum; and the number of the turn
    store = 4 * 8 * 16 * 2 + 4  # what is written, once read: the stack stays where it is
    assert bound.matrix_flops == 2 * product
    assert bound.memory_bytes == 2 * (operands + add + store)
    turn = max(product, operands) + add + store
    assert bound.busy_seconds == pytest.approx(2 * turn / 1e3)
    gathered, reduced = 2 * 2 * 32 * 16 * 3 / 4, 2 * 400 * 3 / 4
    assert bound.transfers["all-gather"].bytes == gathered
    assert bound.transfers["all-gather"].bytes_hidden == gathered
    assert bound.transfers["all-reduce"].bytes == reduced
    assert bound.transfers["all-reduce"].bytes_hidden == 0
    assert bound.seconds == pytest.approx(bound.busy_seconds + reduced / 1e3)


def test_turns_are_read_off_the_condition_where_nobody_wrote_them_down() -> None:
    unwritten = TEXT.replace(', backend_config={"known_trip_count":{"n":"2"}}', "")
    once = estimate_step_time(HloProgram(unwritten), MachineLimits(1e3, 1e3, 1e3, 1e3, 4, 4))
    compared = unwritten.replace(
        "ROOT %more = pred[] constant(true)",
        "%turn = s32[] get-tuple-element(%state), index=0\n  %limit = s32[] constant(3)\n"
        "  ROOT %more = pred[] compare(%turn, %limit), direction=LT",
    )
    thrice = estimate_step_time(HloProgram(compared), MachineLimits(1e3, 1e3, 1e3, 1e3, 4, 4))
    assert thrice.matrix_flops == 3 * once.matrix_flops > 0


def test_a_transfer_longer_than_the_work_beside_it_is_waited_for() -> None:
    slow = MachineLimits(flops=1e9, memory=1e9, link=1.0, network=1.0, devices=4, host=4)
    bound = estimate_step_time(HloProgram(TEXT), slow)
    assert bound.seconds == pytest.approx(2 * 768 + 600, rel=1e-3)


def test_between_hosts_the_network_decides() -> None:
    """Two hosts of two: each receives half of what is gathered, through two cards."""
    machine = MachineLimits(flops=1e9, memory=1e9, link=1e9, network=1.0, devices=4, host=2)
    transfers = estimate_step_time(HloProgram(TEXT), machine).transfers
    assert transfers["all-gather"].seconds == pytest.approx(2 * 1024 / 2 / 2)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", list(range(8))),
        ("channel_id=1", list(range(8))),
    ],
)
def test_a_group_is_read_in_every_spelling(groups: str, expected: list[int]) -> None:
    operation = Operation("x", "all-gather", "f32[]", (), f", {groups}, dimensions={{0}}", False)
    assert collective_group(operation, 8) == expected


def test_shapes_and_lines_are_split() -> None:
    assert shape_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, s4[4]{0}, /*index=2*/f32[])") == 12 + 2 + 4
    line = '(f32[2]{0}, (s8[3], u8[0])) custom-call(%a, %b), custom_call_target="x(y)"'
    assert split_line(line) == (
        "(f32[2]{0}, (s8[3], u8[0]))", "custom-call", "%a, %b", ', custom_call_target="x(y)"'
    )  # fmt: skip


ATTENTION = """
ENTRY %main (q: bf16[2,64,4,8], k: bf16[2,64,2,8], s: f32[4,4,64]) -> bf16[2,4,64,8] {
  %q = bf16[2,64,4,8]{3,2,1,0} parameter(0)
  %k = bf16[2,64,2,8]{3,2,1,0} parameter(1)
  %s = f32[4,4,64]{2,1,0} parameter(2)
  %forward = (bf16[2,4,64,8]{3,1,2,0}, f32[4,4,64]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{"max_seg_per_batch":2}}
  ROOT %backward = (bf16[2,4,64,8]{3,1,2,0}, bf16[2,2,64,8]{3,1,2,0}, bf16[2,2,64,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k, %s, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config":{"max_seg_per_batch":2}}
}
"""  # noqa: E501


def test_attention_by_cudnn_is_counted_as_one_document_a_row() -> None:
    program = HloProgram(ATTENTION)
    assert program.kernels() == {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}
    machine = MachineLimits(1.0, math.inf, math.inf, math.inf, 1, 1)
    assert estimate_step_time(program, machine).matrix_flops == 7 * 2 * 2 * 4 * 64 * 64 / 2 * 8
    assert library_workspace(program) == 2 * 2 * 64 * 4 * (8 * 8 + 4)
