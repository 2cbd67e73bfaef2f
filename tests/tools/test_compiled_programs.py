"""What is read off a compiled program, on small programs whose costs are known by hand."""

from __future__ import annotations

import math
import re

import pytest
from compiled_programs.collectives import collective_group
from compiled_programs.hlo_program import HloProgram, Operation, shape_bytes, split_line
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
    by_two = compared.replace("tuple(%turn, ", "tuple(%on, ").replace(
        "  ROOT %next", "  %two = s32[] constant(2)\n  %on = s32[] add(%turn, %two)\n  ROOT %next"
    )
    twice = estimate_step_time(HloProgram(by_two), MachineLimits(1e3, 1e3, 1e3, 1e3, 4, 4))
    assert twice.matrix_flops == 2 * once.matrix_flops


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


# What JAX 0.10.2 makes of a Pallas kernel through Triton, compiled for an H100: four products of
# [16, 16] each. The kernel's own program stands in the line, with brackets and control characters.
KERNEL = r"""
ENTRY %main.1 (x.1: bf16[64,16], w.1: bf16[16,16]) -> f32[64,16] {
  %w.1 = bf16[16,16]{1,0} parameter(1), sharding={replicated}, frontend_attributes={xla.sdy.sharding="#sdy.sharding<@empty_mesh, [{}, {}]>"}, metadata={op_name="w" scheduling_name="w.1"}
  %x.1 = bf16[64,16]{1,0} parameter(0), sharding={replicated}, frontend_attributes={xla.sdy.sharding="#sdy.sharding<@empty_mesh, [{}, {}]>"}, metadata={op_name="x" scheduling_name="x.1"}
  ROOT %pallas_call.1 = f32[64,16]{1,0} custom-call(%x.1, %w.1), custom_call_target="__gpu$xla.gpu.triton", operand_layout_constraints={bf16[64,16]{1,0}, bf16[16,16]{1,0}}, api_version=API_VERSION_TYPED_FFI, metadata={op_name="jit(f)/grouped_product/pallas_call" scheduling_name="pallas_call.1" stack_frame_id=2}, backend_config={debug = false, grid_x = 4 : i32, grid_y = 1 : i32, grid_z = 1 : i32, ir = "ML\EFR\0DMLIR23.0.0git\00\015\07\01\05\09\1F\01\03\0F\03\17\13\17\1B\1F#'+/37;\05\07?CG\03\7FM\1F\01K\0F\07\0F\0F\0F\0F\0F\0B\0B\13\0F\0F\0B\0B\0B\17\0B\0F\0B\0B\0F\0F\1B\0F\0F\1B\0F\0B\0F\0B\0F\1B\0B\0F\0B\0F\1B\05\03Y\01\1B\17\0F\13\17\17\17\07\17\17\17\1B\07\0B\03\0595\02V\03\1DAC\1F\1D\1B)\1D\1B/\11\03\01\11\03A\11\03\05\05%\05'\03\03!#\11\19\00\1D79\05)\05+\05-\01\07\13\13\13\05/\11\03\81\0D\15\051\1D\1D+\1D\0F--\11\07\09EQ\1D\1D1\1D\0F3-\11\07\09S_\13\0D\01\053\1D;=\055\1D\0F?-\11\07\095a\057\1DEG\059\1D\0FI-\11\07\09'3#arith.overflow<none>\00\1B\05AA\03\01\02\02\1B\03A\03\1B\05AA\1B\1B\05A\05\03\1B\05\05A\03\0B\1B\05AA\0D\1B\05AA\17\1B\05AA\1D\05\07\1B\1B\1D\01\07\01\09!tt.ptr<bf16>\00!tt.ptr<f32>\00\04\EA\0A\05\01P\03\01\07\04\C6\0A\03\01\05\0FP\03\03\07\04\9A\0A\03\B9\DE\02\07559\00\11B\03\05\03\03\19B\03\05\03\03\19B\03\07\03\03\1BF\03\09\03\03\05\07\0B\19B\03\07\03\03\1BF\03\09\03\03\05\09\0F\19B\03\05\03\03\19B\03\05\03\03\19B\03\07\03\03\1BF\03\09\03\03\05\13\17\19B\03\07\03\03\1BF\03\09\03\03\05\15\1B\19B\03\05\03\03\19B\03\07\03\03\1BF\03\09\03\03\05\07!\19B\03\07\03\03\1BF\03\09\03\03\05\1F%\19B\05\05\03\03\03\06\05\03\01\03)\05B\05\0B\03\05\07F\05\0D\03\09\03-\09\06\05\03\01\03/\03\06\05\03\01\03\0D\1DF\05\09\03\01\0513\19B\05\07\03\03\03\06\05\03\01\037\1BF\05\09\03\01\0559\1DF\05\09\03\01\05+;\05B\05\0B\03\05\07F\05\05\03\0B\03?\09\06\05\03\01\03A\03\06\05\03\01\03\11\1DF\05\09\03\01\05CE\19B\05\0D\03\03\03\06\05\03\01\03I\1BF\05\09\03\01\05GK\1DF\05\09\03\01\05=M\03\06\05\03\07\03\01\0B\06\05\03\07\05QO\0DF\05\0F\03\11\03S\19B\07\05\03\03\03\06\07\03\01\03W\05B\07\0B\03\05\07F\07\0D\03\09\03[\09\06\07\03\01\03]\03\06\07\03\01\03\19\1DF\07\09\03\01\05_a\19B\07\07\03\03\03\06\07\03\01\03e\1BF\07\09\03\01\05cg\1DF\07\09\03\01\05Yi\05B\07\0B\03\05\07F\07\05\03\0B\03m\09\06\07\03\01\03o\03\06\07\03\01\03\1D\1DF\07\09\03\01\05qs\19B\07\0D\03\03\03\06\07\03\01\03w\1BF\07\09\03\01\05uy\1DF\07\09\03\01\05k{\03\06\07\03\07\03\03\0B\06\07\03\07\05\7F}\0DF\07\0F\03\11\03\81\19B\17\11\03\0D\03\06\17\03\0F\03\85\13F\17\13\03\0F\07U\83\87\19B\01\05\03\03\03\06\01\03\01\03\8B\05B\01\0B\03\05\07F\01\0D\03\09\03\8F\09\06\01\03\01\03\91\03\06\01\03\01\03#\1DF\01\09\03\01\05\93\95\19B\01\07\03\03\03\06\01\03\01\03\99\1BF\01\09\03\01\05\97\9B\1DF\01\09\03\01\05\8D\9D\05B\01\0B\03\05\07F\01\05\03\0B\03\A1\09\06\01\03\01\03\A3\03\06\01\03\01\03'\1DF\01\09\03\01\05\A5\A7\19B\01\0D\03\03\03\06\01\03\01\03\AB\1BF\01\09\03\01\05\A9\AD\1DF\01\09\03\01\05\9F\AF\03\06\01\03\13\03\05\0B\06\01\03\13\05\B3\B1\0DF\01\0F\03\0F\03\B5\15D\01\15\05\B5\89\17\00\03\06\03\01\05\01\00\1A\04;\0B\0D\19\1B\0F!\09\0B!\15\0F\0B\0B\13\0F\0D\09\1F\0B\0B\0F\15\19\17\0D\0F\0D\07\11builtin\00tt\00arith\00module\00splat\00make_range\00expand_dims\00broadcast\00addptr\00load\00func\00get_program_id\00dot\00store\00return\00constant\00muli\00addi\00kernel\00kernel.py\00grouped_product\00get:\00get\00tt.divisibility\00public\00dot_general:\00dot_general\00swap:\00swap\00\08K\17\053\01\0B?%\01\19O\03\09\03\0B\03\97\05\0B\09\03\0D\0D\1B\1B+\07\01\03\035\05\13\13\07\1B\1B\01", name = "grouped_product", num_stages = 2 : i32, num_warps = 4 : i32, serialized_metadata = "{\22flops\22: \2232768\22}"}
}
"""  # noqa: E501


def test_a_kernel_through_triton_says_its_name_and_its_flops() -> None:
    """Also where its program, of bytes, looks like attributes of the line around it."""
    machine = MachineLimits(1.0, 1.0, math.inf, math.inf, 1, 1)
    hostile = KERNEL.replace(' ir = "', r' ir = "}), calls=%gone, body=%gone, name = \22x\22 (\5C')
    for text in (KERNEL, hostile):
        program = HloProgram(text)
        assert program.kernels() == {"grouped_product": 1}
        bound = estimate_step_time(program, machine)
        assert bound.matrix_flops == 2 * 64 * 16 * 16
        assert bound.memory_bytes == 2 * (64 * 16 + 16 * 16) + 4 * 64 * 16  # each once
    silent = re.sub(r", serialized_metadata = \".*?\"", "", KERNEL)
    assert estimate_step_time(HloProgram(silent), machine).matrix_flops == 0
    unnamed = HloProgram(silent.replace('name = "grouped_product", ', ""))
    assert unnamed.kernels() == {"__gpu$xla.gpu.triton": 1}


# A kernel for TPUs may have attributes of several lines; what follows it is still the program.
SEVERAL_LINES = r"""
ENTRY %main (x: bf16[8]) -> bf16[32] {
  %x = bf16[8]{0} parameter(0)
  %kernel = bf16[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 1024}"
}}, metadata={op_name="jit(f)/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv=="}}
  ROOT %gather = bf16[32]{0} all-gather(%kernel), replica_groups=[1,4]<=[4], dimensions={0}
}
"""  # noqa: E501


def test_an_operation_may_take_several_lines() -> None:
    program = HloProgram(SEVERAL_LINES)
    assert program.kernels() == {"tpu_custom_call": 1}
    assert "custom_call_config" in program.computations["main"]["kernel"].rest
    machine = MachineLimits(1.0, 1.0, 1.0, 1.0, 4, 4)
    assert estimate_step_time(program, machine).transfers["all-gather"].bytes == 2 * 24


# Forms that the compiler for TPUs gives to collectives of sharded parameters. `%gathered` puts a
# shard among zeros and sums; of `%summed`, which has a vector beside a matrix, a fusion
# reads a slice of the matrix; `%product` gathers inside of itself, two computations deep; `%later`
# wraps a gather that a copy runs beside.
FORMS = """
%shard_among_zeros (param_0: bf16[32,8], param_1: bf16[8,8], param_2: s32[]) -> bf16[32,8] {
  %param_0 = bf16[32,8]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %update = bf16[32,8]{1,0:T(8,128)(2,1)} dynamic-update-slice(%param_0, %param_1, %param_2, %zero)
}

%own_slice (param_0: f32[32,8], param_1: s32[]) -> f32[8,8] {
  %param_0 = f32[32,8]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = f32[8,8]{1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={8,8}
  ROOT %negate = f32[8,8]{1,0:T(8,128)} negate(%slice)
}

%gather_in_pieces (param_0: bf16[8,8]) -> bf16[32,8] {
  %param_0 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%param_0), replica_groups=[1,4]<=[4], dimensions={0}
}

%product_and_gather (param_0: bf16[16,32], param_1: bf16[8,8]) -> bf16[16,8] {
  %param_0 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(1)
  %inner = bf16[32,8]{1,0:T(8,128)(2,1)} fusion(%param_1), kind=kCustom, calls=%gather_in_pieces
  ROOT %convolution = bf16[16,8]{1,0:T(8,128)(2,1)} convolution(%param_0, %inner), dim_labels=bf_io->bf
}

%wrapped (param_0: bf16[8,8]) -> bf16[32,8] {
  %param_0 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%param_0), replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (shard: bf16[8,8], gradient: f32[32,8], bias: f32[8], rows: bf16[16,32], turn: s32[]) -> f32[8,8] {
  %shard = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %gradient = f32[32,8]{1,0:T(8,128)} parameter(1)
  %bias = f32[8]{0:T(128)} parameter(2)
  %rows = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(3)
  %turn = s32[]{:T(128)} parameter(4)
  %nothing = bf16[]{:T(256)} constant(0)
  %zeros = bf16[32,8]{1,0:T(8,128)(2,1)} broadcast(%nothing), dimensions={}
  %placed = bf16[32,8]{1,0:T(8,128)(2,1)} fusion(%zeros, %shard, %turn), kind=kLoop, calls=%shard_among_zeros
  %copy-start = (bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[32,8]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%placed)
  %copy-done = bf16[32,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %gathered = bf16[32,8]{1,0:T(8,128)(2,1)} all-reduce(%copy-done), replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add
  %summed = (f32[32,8]{1,0:T(8,128)}, f32[8]{0:T(128)}) all-reduce(%gradient, %bias), replica_groups=[1,4]<=[4], to_apply=%add.1
  %matrix = f32[32,8]{1,0:T(8,128)} get-tuple-element(%summed), index=0
  %whole = f32[8]{0:T(128)} get-tuple-element(%summed), index=1
  %scaled = f32[8]{0:T(128)} negate(%whole)
  %product = bf16[16,8]{1,0:T(8,128)(2,1)} fusion(%rows, %shard), kind=kOutput, calls=%product_and_gather
  %later = ((bf16[8,8]{1,0:T(8,128)(2,1)}), bf16[32,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) async-start(%shard), calls=%wrapped
  %beside = bf16[16,8]{1,0:T(8,128)(2,1)} copy(%product)
  %got = bf16[32,8]{1,0:T(8,128)(2,1)} async-done(%later), calls=%wrapped
  ROOT %kept = f32[8,8]{1,0:T(8,128)} fusion(%matrix, %turn), kind=kLoop, calls=%own_slice
}
"""  # noqa: E501


def test_every_form_of_a_collective_is_found_and_named_for_what_it_does() -> None:
    machine = MachineLimits(1e3, 1e3, 1e3, 1e3, 4, 4)
    moved = estimate_step_time(HloProgram(FORMS), machine).transfers
    others = 3 / 4
    assert {kind: found.bytes for kind, found in moved.items()} == {
        "all-gather as all-reduce": 2 * 2 * 32 * 8 * others,
        "reduce-scatter as all-reduce": 2 * 4 * 32 * 8 * others,
        "all-reduce": 2 * 4 * 8 * others,
        "all-gather": 2 * (2 * 32 * 8) * others,  # in a product, and later
    }
    hidden = {kind: found.bytes_hidden for kind, found in moved.items() if found.bytes_hidden}
    assert hidden == {"all-gather": 2 * (2 * 32 * 8) * others}


def test_a_sum_that_is_read_as_a_whole_or_of_more_than_zeros_is_a_sum() -> None:
    machine = MachineLimits(1e3, 1e3, 1e3, 1e3, 4, 4)
    also = FORMS.replace(
        "negate(%whole)", "negate(%whole)\n  %also = f32[32,8]{1,0} negate(%matrix)"
    )
    slice_line = "dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={8,8}"
    for text in (also, FORMS.replace(slice_line, "negate(%param_0)")):
        moved = estimate_step_time(HloProgram(text), machine).transfers
        assert "reduce-scatter as all-reduce" not in moved and moved["all-reduce"].bytes > 1500
    filled = FORMS.replace("broadcast(%nothing), dimensions={}", "negate(%rows)")
    assert (
        "all-gather as all-reduce" not in estimate_step_time(HloProgram(filled), machine).transfers
    )
