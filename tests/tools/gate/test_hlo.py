from tools.gate import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%fused_transpose (param_0: bf16[4096,2048]) -> bf16[2048,4096] {
  %param_0 = bf16[4096,2048]{1,0} parameter(0)
  %transpose.1 = bf16[2048,4096]{1,0} transpose(%param_0), dimensions={1,0}
  ROOT %bitcast.1 = bf16[2048,4096]{1,0} bitcast(%transpose.1)
}

%fused_add (param_0.1: f32[8,4]) -> f32[8,4] {
  %param_0.1 = f32[8,4]{1,0} parameter(0)
  %copy.inside = f32[8,4]{1,0} copy(%param_0.1)
  ROOT %add.1 = f32[8,4]{1,0} add(%copy.inside, %copy.inside)
}

%body (arg: (s32[], bf16[2048,4096])) -> (s32[], bf16[2048,4096]) {
  %arg = (s32[], bf16[2048,4096]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%arg), index=0
  %big = bf16[2048,4096]{1,0} get-tuple-element(%arg), index=1
  %copy.2 = bf16[2048,4096]{1,0} copy(%big), metadata={op_name="jit(step)/paged_attention/while/body/max"}
  ROOT %tuple.1 = (s32[], bf16[2048,4096]{1,0}) tuple(%count, %copy.2)
}

%condition (arg.1: (s32[], bf16[2048,4096])) -> pred[] {
  %arg.1 = (s32[], bf16[2048,4096]{1,0}) parameter(0)
  ROOT %compare.1 = pred[] constant(false)
}

ENTRY %main (state: f32[8,4], weight: bf16[4096,2048]) -> (f32[8,4], f32[8,4], bf16[2048,4096]) {
  %state = f32[8,4]{1,0} parameter(0)
  %weight = bf16[4096,2048]{1,0} parameter(1)
  %add_fusion = f32[8,4]{1,0} fusion(%state), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/add"}
  %transposed = bf16[2048,4096]{1,0} fusion(%weight), kind=kInput, calls=%fused_transpose
  %zero = s32[] constant(0)
  %init = (s32[], bf16[2048,4096]{1,0}) tuple(%zero, %transposed)
  %while.1 = (s32[], bf16[2048,4096]{1,0}) while(%init), condition=%condition, body=%body
  %last = bf16[2048,4096]{1,0} get-tuple-element(%while.1), index=1
  ROOT %result = (f32[8,4]{1,0}, f32[8,4]{1,0}, bf16[2048,4096]{1,0}) tuple(%add_fusion, %state, %last)
}
"""

THUNKS = """\
000: kCommandBuffer [source | next=018 (1)]
 001: kCustomKernel [source | next=003 (2)] loop_gather_fusion_1 grid: [13, 1, 1]
018: kWhile [prev=000 (1)]
body:
 000: kCommandBuffer [source | sink]
"""


def test_shape_bytes():
    assert hlo.shape_bytes("bf16[64,128]{1,0}") == 64 * 128 * 2
    assert hlo.shape_bytes("(f32[8,4]{1,0}, s32[], pred[3]{0})") == 128 + 4 + 3
    assert hlo.shape_bytes("(f8e4m3fn[16]{0}, u64[2]{0})") == 16 + 16
    assert hlo.shape_bytes("()") == 0


def test_executed_instructions_are_the_entrys_and_the_loops():
    placed = {p.instruction.name: p.in_loop for p in hlo.parse(PROGRAM).executed()}
    assert placed["add_fusion"] is False
    assert placed["copy.2"] is True
    assert "copy.inside" not in placed, "a fusion's interior is one kernel"


def test_large_moves_finds_fused_ones():
    moves = hlo.large_moves(hlo.parse(PROGRAM), limit=8 * 2**20)
    assert [p.instruction.name for p in moves] == ["transposed", "copy.2"]
    assert not hlo.large_moves(hlo.parse(PROGRAM), limit=16 * 2**20)


def test_an_output_that_nothing_wrote_is_found():
    assert hlo.unwritten_outputs(hlo.parse(PROGRAM)) == ["state"]


def test_command_buffers_are_counted():
    assert hlo.num_command_buffers(THUNKS) == 2


def test_branches_outside_of_command_buffers_are_the_hosts():
    """A graph in a branch does not hide the branch, and one that is over holds nothing."""
    outside = """\
000: kCommandBuffer [source       | next=078 (1)]
    001: kCustomKernel
078: kConditional   [prev=000 (1) | next=000 (1)]
  false_branch:
    000: kCommandBuffer
        046: kCustomKernel
    058: kWhile
condition:
        059: kCustomKernel
      body:
        000: kCommandBuffer
            060: kConditional
        061: kConditional
"""
    assert hlo.num_host_branches(outside) == 2
    inside = "000: kCommandBuffer\n    078: kConditional\n        079: kConditional\n080: kCustomKernel\n"
    assert hlo.num_host_branches(inside) == hlo.num_host_branches(THUNKS) == 0


def test_the_turns_of_loops_are_known_or_not():
    assert hlo.trip_counts(hlo.parse(PROGRAM)) == [None]
    known = PROGRAM.replace(
        "body=%body",
        'body=%body, backend_config={"known_trip_count":{"n":"8"},"dynamic_variable_tuple_indices":[]}',
    )
    assert hlo.trip_counts(hlo.parse(known)) == [8]
    assert hlo.trip_counts(hlo.parse(known), "attention") == []
    named = known.replace("body=%body,", 'body=%body, metadata={op_name="jit(step)/attention/while"},')
    assert hlo.trip_counts(hlo.parse(named), "attention") == [8]
