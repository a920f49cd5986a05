from tools.gate import ptxas
from tools.gate.kernel_call import _is_own, _named
from tools.gate.kernel_case import Case


def test_kernels_are_known_by_the_names_that_the_library_gives_them():
    mosaic, triton, xla = (
        Case("decode", implementation, "llama3-8b", 64, 2**30)
        for implementation in ("mosaic", "triton", "xla")
    )

    def named(kernel, case):
        return _named(ptxas.Report(kernel, "sm_90a", 1, 0, 0, ()), case).kernel

    assert named("paged_decode_combine_mosaic_gpu_kernel", mosaic) == "paged_decode_combine"
    assert named("paged_decode_triton", triton) == "paged_decode"
    assert named("input_scatter_fusion", xla._replace(op="write")) == "write_kv"
    assert _is_own("paged_decode_triton", triton)
    assert not _is_own("loop_select_fusion", triton)
    assert _is_own("loop_gather_fusion", xla)
