import pytest

from jbatch.model_dir.shapes import SHAPES
from tools.gate import kernels as gate_kernels
from tools.gate import ptxas
from tools.gate import table as gate_table


def row(**changes):
    names = {"kernel": "write_kv", "implementation": "xla", "shape": "llama3-8b", "page_size": 64}
    sizes = {"registers": 40, "spill_bytes": 0, "smem_bytes": 2048, "threads": 128, "ctas_per_core": 12}
    sizes |= {"num_ctas": 528, "resident_ctas": 528}
    memory = {"pool_bytes": 2**30, "alias_bytes": 2**30, "temp_bytes": 0, "temp_bytes_half_pool": None}
    rest = {"target": "h200", "jax": "0.11.2", "status": "ok", "reason": None, "remarks": []}
    return names | sizes | memory | rest | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spill_bytes": 12}, "12 bytes of registers spill"),
        ({"alias_bytes": 0}, "not in place: 0 of 1073741824 bytes alias"),
        ({"temp_bytes_half_pool": 5}, "temporaries grow with the pool: 5 bytes for half of it, 0 for all"),
        ({"status": "failed", "reason": "ValueError: tiles"}, "ValueError: tiles"),
        ({"implementation": "mosaic", "remarks": ["Potential Performance Loss: x"]}, "Performance Loss"),
    ],
)
def test_failures_are_named(changes, says):
    assert not gate_kernels.failures([row()])
    (failure,) = gate_kernels.failures([row(**changes)])
    assert says in failure and failure.startswith("write_kv")


def test_a_persistent_grid_must_fit():
    (failure,) = gate_kernels.failures([row(kernel="paged_decode", num_ctas=529)])
    assert "a persistent grid of 529 CTAs, of which 528 fit" in failure
    assert not gate_kernels.failures([row(num_ctas=529)])


def test_attention_owes_no_aliasing():
    assert not gate_kernels.failures([row(kernel="paged_decode", alias_bytes=0)])


def test_what_is_not_claimed_is_no_failure_where_another_implementation_takes_it():
    declined = row(kernel="paged_decode", implementation="mosaic", status="not_claimed", reason="no Hopper")
    taken = row(kernel="paged_decode")
    assert not gate_kernels.failures([declined, taken])
    (failure,) = gate_kernels.failures([declined])
    assert "no implementation takes it" in failure
    (failure,) = gate_kernels.failures([declined, taken | {"page_size": 16}])
    assert failure.startswith("paged_decode llama3-8b 64")


def test_every_kernel_is_compiled_for_every_shape_and_page_size():
    cases = gate_kernels.cases()
    assert len(set(cases)) == len(cases)
    for op, implementations in gate_kernels.IMPLEMENTATIONS.items():
        for implementation in implementations:
            mine = [case for case in cases if (case.op, case.implementation) == (op, implementation)]
            assert {(case.shape, case.page_size) for case in mine} == {
                (s, p) for s in SHAPES for p in (16, 64)
            }
            (large,) = (case for case in mine if case.pool_bytes > 2**32)
            elements = gate_kernels.problem_of(large).num_pages * 2 * 8 * 64 * 64
            assert elements > 2**31 and elements * 2 > 2**32


def test_the_quick_gate_has_each_kernel_for_both_sizes_of_head_and_of_page():
    cases = gate_kernels.covering(gate_kernels.cases())
    for op, implementations in gate_kernels.IMPLEMENTATIONS.items():
        for implementation in implementations:
            mine = [case for case in cases if (case.op, case.implementation) == (op, implementation)]
            assert sorted((SHAPES[case.shape].head_dim, case.page_size) for case in mine) == [
                (64, 64),
                (128, 16),
            ]
            assert sum(case.pool_bytes > 2**32 for case in mine) == 1
    problems = {(case.op, case.shape, case.page_size) for case in cases}
    assert len(problems) == 2 * len(gate_kernels.IMPLEMENTATIONS), "or what one declines no other one takes"


def test_kernels_are_known_by_the_names_that_the_library_gives_them():
    mosaic, triton, xla = (
        gate_kernels.Case("decode", implementation, "llama3-8b", 64, 2**30)
        for implementation in ("mosaic", "triton", "xla")
    )

    def named(kernel, case):
        return gate_kernels._named(ptxas.Report(kernel, "sm_90a", 1, 0, 0, ()), case).kernel

    assert named("paged_decode_combine_mosaic_gpu_kernel", mosaic) == "paged_decode_combine"
    assert named("paged_decode_triton", triton) == "paged_decode"
    assert named("input_scatter_fusion", xla._replace(op="write")) == "write_kv"
    assert gate_kernels._is_own("paged_decode_triton", triton)
    assert not gate_kernels._is_own("loop_select_fusion", triton)
    assert gate_kernels._is_own("loop_gather_fusion", xla)


def test_a_case_that_does_not_compile_is_a_row(monkeypatch):
    target = gate_kernels.Target("h200", None, None, ptxas.Limits(1, 1, 1, 1), None, {})

    def compile_case(case, target):
        raise ValueError("head_dim=64: too small\nsecond line")

    monkeypatch.setattr(gate_kernels, "compile_case", compile_case)
    (found,) = gate_kernels._measure(gate_kernels.Case("write", "xla", "llama3-8b", 64, 2**30), target)
    assert (found["status"], found["reason"]) == ("failed", "ValueError: head_dim=64: too small")
    assert found["registers"] is None
    assert gate_table.kernels([found]).endswith("failed")


def test_several_launches_of_a_kernel_are_one_row():
    gather = ptxas.Resources("copy_pages", 30, 0, 4, 128, 10, ())
    scatter = ptxas.Resources("copy_pages", 20, 16, 8, 128, 10, ("remark",))
    target = gate_kernels.Target("h200", None, None, ptxas.Limits(65536, 2048, 233472, 132), None, {})
    found = gate_kernels._resources([gather, scatter], target)
    assert (found["registers"], found["spill_bytes"], found["launches"]) == (30, 12, 2)
    assert found["remarks"] == ["remark"]
