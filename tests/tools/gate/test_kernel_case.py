from jbatch.model_dir.shapes import SHAPES
from tools.gate import kernel_case


def test_every_kernel_is_compiled_for_every_shape_and_page_size():
    cases = kernel_case.cases()
    assert len(set(cases)) == len(cases)
    for op, implementations in kernel_case.IMPLEMENTATIONS.items():
        for implementation in implementations:
            mine = [case for case in cases if (case.op, case.implementation) == (op, implementation)]
            assert {(case.shape, case.page_size) for case in mine} == {
                (s, p) for s in SHAPES for p in (16, 64)
            }
            (large,) = (case for case in mine if case.pool_bytes > 2**32)
            elements = kernel_case.problem_of(large).num_pages * 2 * 8 * 64 * 64
            assert elements > 2**31 and elements * 2 > 2**32


def test_the_quick_gate_has_each_kernel_for_both_sizes_of_head_and_of_page():
    cases = kernel_case.covering(kernel_case.cases())
    for op, implementations in kernel_case.IMPLEMENTATIONS.items():
        for implementation in implementations:
            mine = [case for case in cases if (case.op, case.implementation) == (op, implementation)]
            assert sorted((SHAPES[case.shape].head_dim, case.page_size) for case in mine) == [
                (64, 64),
                (128, 16),
            ]
            assert sum(case.pool_bytes > 2**32 for case in mine) == 1
    problems = {(case.op, case.shape, case.page_size) for case in cases}
    assert len(problems) == 2 * len(kernel_case.IMPLEMENTATIONS), "or what one declines no other one takes"
