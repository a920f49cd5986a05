"""What fits the budget where every program takes 15 seconds to compile."""

import itertools
import time

import pytest

from bench.gpu_suite import correct, decode_kernel, idle_share, ladder, plan, steps
from bench.gpu_suite.plan import BY_NAME, PARTS, START_S, TORCH_PARTS, Part, Wave, allowance, choose, pack
from bench.gpu_suite.task import Task
from jbatch.config import EngineConfig
from jbatch.seam.bucket import buckets_of
from pallas_kernels.names import COMPILERS

MUST_FIT = (
    *("correct-mosaic", "correct-triton", "ceilings", "decode-kernel", "flag-sweep"),
    *("steps-8b", "torch-step", "ladder-7b"),
)
SMALL = Part("small", "steps", (Wave(4, 5, 3),), essential=True)  # 8 + 15 + 5 seconds
EXTRA = Part("extra", "steps", (Wave(1, 2, 1),))  # 8 + 15 + 2


def rows_of(part):
    return sum(wave.rows for wave in part.waves)


def test_what_must_fit_into_570_seconds_does():
    entries = {entry.part: entry for entry in pack(PARTS, 570)}
    for name in MUST_FIT:
        assert BY_NAME[name].essential and entries[name].rows == rows_of(BY_NAME[name]) > 0, name
    ends = [e.begin + BY_NAME[e.part].seconds() for e in entries.values() if e.begin is not None]
    assert max(ends) <= 570 - plan.END_S
    assert entries["filtered"].rows and entries["prefill"].rows


def test_parts_come_in_order_and_one_after_the_other():
    begun = [entry for entry in pack(PARTS, 570) if entry.begin is not None]
    assert [e.part for e in begun] == [part.name for part in PARTS if part.name in {e.part for e in begun}]
    for entry, following in itertools.pairwise(begun):
        assert following.begin >= entry.begin + START_S + entry.compile_s + entry.measure_s


def test_where_compiling_is_quick_everything_fits():
    assert all(entry.rows == rows_of(BY_NAME[entry.part]) for entry in pack(PARTS, 570, program_s=5))


def test_where_compiling_is_slow_the_first_parts_are_whole():
    entries = pack(PARTS, 570, program_s=30)
    assert [entry.rows for entry in entries[:3]] == [rows_of(part) for part in PARTS[:3]]
    assert sum(entry.rows for entry in entries) < sum(map(rows_of, PARTS))


def test_the_second_call_fits():
    assert all(entry.rows == rows_of(BY_NAME[entry.part]) for entry in pack(TORCH_PARTS, 570))


def test_programs_of_a_wave_are_compiled_together():
    assert [Wave(n, 0, 0, at_once=4).compile_s(15) for n in (0, 1, 4, 5)] == [0, 15, 15, 30]


def test_an_extra_leaves_what_is_essential_its_time():
    assert allowance(EXTRA, [SMALL], left_s=25 + 27) == 0
    assert allowance(EXTRA, [SMALL], left_s=25 + 28) == 25
    assert allowance(EXTRA, [EXTRA], left_s=25) == 25


def test_what_is_essential_begins_whatever_comes_later():
    assert allowance(SMALL, [SMALL, SMALL], left_s=40) == 28
    assert allowance(SMALL, [], left_s=20) == 20
    assert allowance(SMALL, [], left_s=START_S) == 0
    assert allowance(SMALL, [], left_s=1000) == plan.SLACK_S + 28


def test_a_part_that_is_stopped_keeps_the_rows_of_whole_waves():
    part = Part("two", "steps", (Wave(1, 5, 2), Wave(1, 5, 3)), essential=True)
    (entry,) = pack([part], plan.END_S + 8 + 15 + 5 + 10)
    assert (entry.compile_s, entry.measure_s, entry.rows) == (25, 5, 2)


def test_names_and_groups():
    assert choose([]) == PARTS
    assert choose(["torch"]) == TORCH_PARTS
    assert [part.name for part in choose(["steps-8b", "ceilings"])] == ["ceilings", "steps-8b"]
    assert len(BY_NAME) == len(PARTS) + len(TORCH_PARTS)


def test_memory_is_shared_with_pytorch_alone():
    assert {part.name for part in BY_NAME.values() if part.torch} == {"torch-step", "torch-paged", "torch-hf"}


@pytest.mark.parametrize("budget", [60, 300, 570])
def test_the_table_has_a_line_for_each_part(budget):
    lines = plan.table(pack(PARTS, budget)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [part.name for part in PARTS]
    assert ("no time left" in "".join(lines)) == (budget < 700)


def programs(name):
    return [wave.programs for wave in BY_NAME[name].waves]


@pytest.mark.parametrize("name", [part.name for part in PARTS if part.module == "steps"])
def test_as_many_steps_are_compiled_as_are_planned(name, tmp_path, monkeypatch):
    compiled = []

    def wave(self, number, variants):
        compiled.append(len(variants))
        return [{"flags": v.flags, "ms": 1.0, "status": "ok", "number": v.case.number} for v in variants]

    monkeypatch.setattr(steps.Bench, "wave", wave)
    earlier = {"flag-sweep": [{"flags": "no split-K, cuBLAS", "ms": 1.0, "status": "ok", "number": 64}]}
    steps.run(Task(name, False, time.monotonic() + 600, earlier, tmp_path, tmp_path, print))
    assert compiled == programs(name)


def test_as_many_kernels_are_compiled_as_are_planned():
    assert len(correct.CASES) == programs("correct-mosaic")[0] == programs("correct-triton")[0]
    pools = itertools.groupby(decode_kernel.CASES, key=lambda case: (case.heads, case.page_size))
    each = 1 + len(COMPILERS)  # plain JAX, which they are held against
    assert [each * len(list(cases)) for _, cases in pools] == programs("decode-kernel")


def test_engines_compile_as_many_steps_as_are_planned():
    def buckets(options, mode):
        return buckets_of(EngineConfig(**options, mode=mode), options["max_model_len"])

    assert [len(buckets(idle_share.OPTIONS, "continuous"))] == programs("idle-share")
    continuous, static = (set(buckets(ladder.OPTIONS, mode)) for mode in ("continuous", "static"))
    assert [len(continuous), len(static - continuous)] == programs("ladder-7b")
    assert {"static-padded", "static", "continuous"} == set(ladder.NAMES)
