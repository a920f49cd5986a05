import json

import pytest

from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from tools.gate import hlo, limits
from tools.gate import steps as gate_steps
from tools.gate import table as gate_table
from tools.gate.case import THIN, Case

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%arg), index=0
  %values = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %copy.2 = f32[8,4]{1,0} copy(%values), metadata={op_name="jit(step)/paged_attention/while/body/max"}
  ROOT %tuple.1 = (s32[], f32[8,4]{1,0}) tuple(%count, %copy.2)
}

%condition (arg.1: (s32[], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %compare.1 = pred[] constant(false)
}

ENTRY %main (state: f32[8,4]) -> f32[8,4] {
  %state = f32[8,4]{1,0} parameter(0)
  %add_fusion = f32[8,4]{1,0} add(%state, %state), metadata={op_name="jit(step)/add"}
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,4]{1,0}) tuple(%zero, %add_fusion)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %last = f32[8,4]{1,0} get-tuple-element(%while.1), index=1
}
"""

DECODE = Case("llama3-8b", decode_bucket(64), Sampler.GREEDY, "mosaic")
PLAIN = DECODE._replace(attention="xla")
PREFILL = DECODE._replace(bucket=prefill_bucket(2048))
MIXED = DECODE._replace(bucket=Bucket(64, 2048), sampler=Sampler.FILTERED)
TOGETHER = DECODE._replace(num_ranks=2)
COPIES = DECODE._replace(bucket=None, attention="xla")
MOVE = {"name": "copy.1", "bytes": 2**24, "shape": "x", "op_name": "", "attention": False}


def program(num_layers, names):
    lines = "\n".join(
        f'  %{name} = f32[2]{{0}} add(%p, %p), metadata={{op_name="jit(step)/{name.split(".")[0]}/op"}}'
        for name in names
    )
    text = f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  %p = f32[2]{{0}} parameter(0)\n{lines}\n}}\n"
    return gate_steps.Program(num_layers, 1, 1, {}, hlo.parse(text), 1, 0)


def row(**changes):
    sizes = {"alias_bytes": 10, "pool_bytes": 10, "temp_bytes": 5, "temp_bytes_thin": 5}
    rest = {"temp_bytes_half_pool": 5, "unwritten_outputs": [], "large_moves": [], "command_buffers": 1}
    rest |= {"attention_trip_counts": [], "layers": 2, "collectives": {}, "collectives_in_graph": False}
    kernels = {"kernels": {"while": 0, "attention_while": 0}, "kernels_per_layer": None, "host_branches": 0}
    more = {"readers_of_input": 8, "rematerialised": 0, "written_per_layer_bytes": None}
    return sizes | rest | kernels | more | changes


def test_kernels_are_counted_by_where_they_come_from():
    counts = gate_steps.count_kernels(hlo.parse(PROGRAM))
    assert counts["other"] == 1  # add_fusion
    assert counts["attention_loop"] == 1  # copy.2
    assert counts["while"] == 1 and counts["attention_while"] == 0


def test_what_a_layer_adds_is_the_difference_of_two_programs():
    few = program(2, ["embed.1", "norm.1", "norm.2", "paged_attention.1", "paged_attention.2"])
    many = program(
        4, ["embed.1", *(f"norm.{i}" for i in range(4)), *(f"paged_attention.{i}" for i in range(4))]
    )
    per_layer = gate_steps.kernels_per_layer(many, few)
    assert (per_layer["other"], per_layer["attention"]) == (1, 1)
    assert gate_steps.layer_kernels(many, few) == ["norm: norm/op", "paged_attention: paged_attention/op"]
    assert gate_steps.kernels_per_layer(few, few) is None


def test_a_fusion_that_is_named_after_another_of_its_results_is_no_launch_of_a_layer():
    def with_angles(num_layers, op):
        names = ["angles_fusion.1", *(f"norm.{i}" for i in range(num_layers))]
        instructions = program(num_layers, names)
        entry = instructions.module.computations["main"]
        entry[1] = entry[1]._replace(rest=entry[1].rest.replace("angles_fusion/op", op))
        return instructions

    assert gate_steps.layer_kernels(with_angles(4, "sin"), with_angles(3, "cos")) == ["norm: norm/op"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alias_bytes": 9}, "not updated in place"),
        ({"unwritten_outputs": ["state_kv_pages_0_.1"]}, "returned as they came in: state_kv_pages_0_.1"),
        (
            {"unwritten_outputs": ["extra__bias__.1", "extra__counts___in_output.1"]},
            "returned as they came in: extra__counts___in_output.1",
        ),
        ({"temp_bytes_half_pool": 3}, "depend on the pool"),
        ({"temp_bytes": 41 * 2**20}, "41.0 MB of temporaries: at most 40"),
        ({"readers_of_input": 9}, "9 kernels read the packed input: at most 8"),
        ({"rematerialised": 1}, "1 values computed twice"),
        ({"written_per_layer_bytes": 10 * 2**20}, "a layer writes 10.0 MB: at most 9"),
        ({"kernels_per_layer": {"other": 8.5, "attention": 2}}, "10.5 kernels per layer: at most 10"),
        ({"large_moves": [MOVE]}, "copy.1 moves 16 MB"),
        ({"large_moves": [MOVE | {"attention": True}]}, "copy.1 moves 16 MB"),
        ({"command_buffers": 2}, "2 command buffers"),
        ({"command_buffers": 0}, "0 command buffers"),
    ],
)
def test_failures_are_named(changes, says):
    assert not limits.failures(row(), DECODE)
    (failure,) = limits.failures(row(**changes), DECODE)
    assert says in failure


@pytest.mark.parametrize(
    "changes",
    [
        {"temp_bytes": 72 * 2**20},  # blocks of the cache
        {"attention_trip_counts": [2, 4, 64]},
        {"large_moves": [MOVE | {"attention": True}]},
        {"command_buffers": 5},
    ],
)
def test_plain_jax_attention_may_gather_in_loops(changes):
    assert not limits.failures(row(**changes), PLAIN)
    assert limits.failures(row(large_moves=[MOVE]), PLAIN), "but the rest of its step may not"
    (failure,) = limits.failures(row(attention_trip_counts=[2, None, None]), PLAIN)
    assert failure == "2 loops over blocks of the cache, of a length that only the device knows"


def test_extended_decode_steps_do_not_write_what_a_request_brought():
    case = DECODE._replace(sampler=Sampler.EXTENDED)
    read = ["extra__bad_words___words.1", "extra__bias__.1", "extra__counts___in_prompt.1"]
    assert not limits.failures(row(unwritten_outputs=[*read, "extra__logprob_ids__.1"]), case)
    (failure,) = limits.failures(row(unwritten_outputs=["extra__bad_words___history.1"]), case)
    assert failure.endswith("history.1")


def test_page_copies_write_pages_alone():
    unwritten = ["state_rows.1", "state_block_tables.1"]
    assert not limits.failures(row(unwritten_outputs=unwritten), COPIES)
    assert limits.failures(row(unwritten_outputs=unwritten), DECODE)
    (failure,) = limits.failures(row(unwritten_outputs=["state_kv_pages_0_.1"]), COPIES)
    assert failure == "returned as they came in: state_kv_pages_0_.1"
    assert limits.failures(row(temp_bytes_half_pool=3), COPIES)


def test_a_loop_in_sampling_divides_the_graph():
    looping = row(command_buffers=4, kernels={"while": 2, "attention_while": 0})
    assert not limits.failures(looping, DECODE)
    assert limits.failures(looping | {"command_buffers": 6}, DECODE) == ["6 command buffers instead of 5"]
    assert limits.not_met(looping, DECODE) == ["4 command buffers instead of 1"]


@pytest.mark.parametrize("turns, right", [([8], True), ([None], False), ([], False), ([8, 3], False)])
def test_several_steps_are_one_loop_whose_turns_are_known(turns, right):
    several = DECODE._replace(bucket=Bucket(64, 0, 8))
    looping = row(command_buffers=2, kernels={"while": 1, "attention_while": 0}, trip_counts=turns)
    assert (not limits.failures(looping, several)) == right
    assert several.name == "llama3-8b decode 64 x 8 greedy mosaic"


def test_a_branch_that_the_host_takes_is_told():
    (found,) = limits.not_met(row(host_branches=1), DECODE)
    assert found == "1 branches that the host takes, waiting for the device first"


def test_a_step_with_prompts_moves_activations_by_right():
    assert limits.move_limit(PREFILL) == 2048 * 4096 * 2
    assert limits.move_limit(MIXED) == (64 + 2048) * 4096 * 2
    assert limits.move_limit(DECODE) == limits.move_limit(COPIES) == limits.MOVE_LIMIT


def test_names_say_what_is_compiled():
    names = [case.name for case in (DECODE, PREFILL, MIXED, COPIES)]
    assert names == [
        "llama3-8b decode 64 greedy mosaic",
        "llama3-8b prefill 2048 greedy mosaic",
        "llama3-8b mixed 64+2048 filtered mosaic",
        "llama3-8b page copies",
    ]


def test_pages_are_more_than_any_step_can_read():
    assert gate_steps.enough_pages(DECODE) == 2 * 64 * 128
    assert gate_steps.enough_pages(MIXED) == 2 * (64 + 64) * 128


def test_the_goal_for_a_layer():
    (found,) = limits.not_met(row(written_per_layer_bytes=9 * 2**20), DECODE)
    assert found == "a layer writes 9.00 MB (goal: 8)"
    assert not limits.not_met(row(written_per_layer_bytes=8 * 2**20), DECODE)
    assert not limits.not_met(
        row(written_per_layer_bytes=32 * 2**20), DECODE._replace(bucket=decode_bucket(256))
    )


def test_a_lone_sequence_has_a_dead_one_beside_it():
    lone = DECODE._replace(bucket=decode_bucket(1))
    written = row(written_per_layer_bytes=0.27 * 2**20)
    assert not limits.failures(written, lone)
    assert not limits.failures(row(readers_of_input=12), lone) and limits.failures(
        row(readers_of_input=13), lone
    )
    assert limits.not_met(written, lone) == ["a layer writes 0.27 MB (goal: 0.25)"]


def test_what_kernels_read_and_write():
    module = hlo.parse(PROGRAM)
    assert hlo.num_readers(module, "state") == 1 and hlo.num_readers(module, "packed") == 0
    assert hlo.bytes_written(module, shape="[9,", scope="other") == 2 * 8 * 4 * 4, "the loop's copy, too"
    assert hlo.bytes_written(module, shape="[9,", scope="paged_attention") == 8 * 4 * 4
    assert hlo.bytes_written(module, shape="[8,", scope="other") == 0
    again = hlo.parse(PROGRAM.replace("add_fusion", "add_fusion.remat2"))
    assert (hlo.num_rematerialised(module), hlo.num_rematerialised(again)) == (0, 1)


@pytest.mark.parametrize(("target", "attention"), [("h200", "mosaic"), ("a100", "triton")])
def test_whole_decode_steps_are_compiled_with_the_targets_kernels(target, attention):
    cases = gate_steps.cases(target, (0, 11, 2))
    whole = {case.model for case in cases if case.num_layers == 32 and case.attention == attention}
    assert whole == {"llama3-8b", "llama2-7b"}
    plain = [case.bucket for case in cases if case.attention == "xla"]
    assert plain == [None, decode_bucket(64), prefill_bucket(2048)]
    assert [case.bucket for case in cases if case.bucket and all(case.bucket)] == [Bucket(64, 2048)]
    counted = {case.slots for case in cases if case.decodes and case.num_layers > THIN}
    assert counted == {1, 64, 256}, "a layer's kernels are counted for each"
    assert {case.sampler for case in cases} == set(Sampler) - {Sampler.PLAIN}
    assert len({case.name for case in cases}) == len(cases)
    assert {case.attention for case in gate_steps.cases(target, (0, 10, 2))} == {"triton", "xla"}


def test_rows_can_be_written_and_shown():
    placed = next(hlo.parse(PROGRAM).executed())
    counts = gate_steps.count_kernels(hlo.parse(PROGRAM))
    shown = row(kernels=counts, step="a step", layers=2, cpu_s=1.5, argument_bytes=7)
    shown["large_moves"] = [gate_steps._describe(placed)]
    json.dumps(shown)
    assert "a step" in gate_table.steps([shown])


@pytest.mark.parametrize("target, attention", [("h200", "mosaic"), ("a100", "triton")])
def test_the_quick_gate_has_whole_decode_steps(target, attention):
    found = gate_steps.covering(gate_steps.cases(target, (0, 11, 2)))
    assert [(case.model, case.num_layers, case.attention) for case in found if case.decodes] == [
        ("llama3-8b", 32, attention),
        ("llama3.2-1b", 16, attention),
    ]
    (prompts,) = (case for case in found if not case.decodes)
    assert (prompts.model, prompts.bucket, prompts.attention) == (
        "llama3-8b",
        prefill_bucket(2048),
        attention,
    )


def test_the_quick_gate_of_an_older_jax():
    (case,) = gate_steps.covering(gate_steps.cases("h200", (0, 10, 2)))
    assert (case.name, case.num_layers) == ("llama3-8b decode 64 greedy triton", THIN)


EXCHANGED = {"all-reduce": 5, "all-gather": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"collectives": EXCHANGED | {"all-reduce": 7}}, "devices exchange {'all-reduce': 7, "),
        ({"collectives": EXCHANGED | {"all-to-all": 1}}, "'all-to-all': 1} instead of {'all-reduce': 5, "),
        ({"kernels_per_layer": {"other": 11.5, "attention": 2}}, "13.5 kernels per layer: at most 13"),
        ({"command_buffers": 8}, "8 command buffers instead of 7"),
        ({"command_buffers": 2, "collectives_in_graph": True}, "2 command buffers instead of 1"),
        ({"temp_bytes": 72 * 2**20}, "72.0 MB of temporaries: at most 71"),  # 31 MB of logits are gathered
    ],
)
def test_devices_that_compute_together(changes, says):
    (failure,) = limits.failures(row(collectives=EXCHANGED) | changes, TOGETHER)
    assert says in failure


def test_what_devices_exchange_divides_the_graph():
    for changes in ({"command_buffers": 7}, {"collectives_in_graph": True}):
        assert limits.failures(row(collectives=EXCHANGED) | changes, TOGETHER) == []


def test_what_devices_exchange_is_counted():
    """Also where it is started and waited for."""
    text = (
        "ENTRY %main (p: f32[2]) -> f32[2] {\n  %p = f32[2]{0} parameter(0)\n"
        "  %all-reduce.1 = f32[2]{0} all-reduce(%p), to_apply=%sum\n"
        "  %start = f32[2]{0} all-reduce-start(%all-reduce.1), to_apply=%sum\n"
        "  %done = f32[2]{0} all-reduce-done(%start)\n"
        "  ROOT %all-gather.1 = f32[4]{0} all-gather(%done), dimensions={0}\n}\n"
    )
    assert hlo.collectives(hlo.parse(text)) == {"all-reduce": 2, "all-gather": 1}
