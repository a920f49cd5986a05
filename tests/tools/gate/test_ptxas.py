import pytest

from tools.gate import ptxas

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x
ptxas info    : Compiling entry function 'paged_decode_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for paged_decode_mosaic_gpu_kernel
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 96 registers, used 16 barriers, 1 bytes smem
ptxas info    : Compile time = 49.274 ms
"""

OLDER = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 432 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 432 bytes cmem[0]
"""

MLIR = """\
    %c1 = arith.constant 1 : index
    %c105600_i32 = arith.constant 105600 : i32
    %c264 = arith.constant 264 : index
    %c128 = arith.constant 128 : index
    %c2 = arith.constant 2 : index
    %130 = gpu.launch async [%22] blocks(%arg2, %arg3, %arg4) in (%arg8 = %c264, %arg9 = %c2, %arg10 = %c1) \
threads(%arg5, %arg6, %arg7) in (%arg11 = %c128, %arg12 = %c2, %arg13 = %c1) \
dynamic_shared_memory_size %c105600_i32 {
"""

THUNKS = """\
000: kCommandBuffer [source | sink]
    001: kCustomKernel [source       | next=003 (2)] loop_gather_fusion_1 grid: [13, 2, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
    015: kCustomCall   [prev=014 (1) | next=016 (1)] kCustomCall
    016: kCustomKernel [prev=001 (1) | sink        ] paged_decode_triton grid: [528, 1, 1] threads: [64, 2, 1]  shared_memory: 20736 bytes
"""  # noqa: E501

TARGET = "shared_memory_per_core: 233472\n registers_per_core_limit: 65536\n threads_per_core_limit: 2048\n"
LIMITS = ptxas.Limits(registers=65536, threads=2048, smem_bytes=233472, num_cores=132)


def resources(registers, threads, smem_bytes):
    return ptxas.Resources("kernel", registers, smem_bytes, 0, threads, 1, ())


def test_a_report_names_what_a_kernel_takes():
    (report,) = ptxas.parse(REPORT)
    assert report.kernel == "paged_decode_mosaic_gpu_kernel" and report.arch == "sm_90a"
    assert (report.registers, report.spill_bytes, report.static_smem) == (96, 8 + 4, 1)
    (remark,) = report.remarks
    assert remark.startswith("Potential Performance Loss: wgmma")


def test_reports_of_several_kernels_and_of_nothing():
    first, second = ptxas.parse(OLDER)
    assert (first.kernel, first.registers, first.spill_bytes) == ("first", 40, 0)
    assert (second.kernel, second.registers) == ("second", 255)
    assert ptxas.parse("ptxas info    : 0 bytes gmem\n") == []


def test_mosaics_launch():
    assert ptxas.mosaic_launch(MLIR) == ptxas.Launch(num_ctas=264 * 2, threads=256, smem_bytes=105600)
    with pytest.raises(ValueError, match=r"gpu\.launch"):
        ptxas.mosaic_launch("module {}")


def test_a_mosaic_kernel_that_was_compiled_before_has_the_report_of_then(tmp_path):
    """jax 0.12 numbers the two files of a kernel apart, and compiles no kernel twice."""
    compiled = {}

    def dumped(number, text):
        name = f'module @paged_decode attributes {{mosaic_gpu.dump_basename = "paged_decode_{number}"}} {{\n'
        (tmp_path / f"paged_decode_{number}.before_layout_inference.txt").write_text(name + text)
        found = ptxas.mosaic_kernels(tmp_path, compiled)
        return [(report.registers, launch.threads) for report, launch in found]

    assert not dumped(0, MLIR), "ptxas has not said anything"
    (tmp_path / "paged_decode_7.ptxas").write_text(REPORT)
    assert dumped(0, MLIR) == [(96, 256)]
    for file in tmp_path.iterdir():
        file.unlink()
    assert dumped(1, MLIR) == [(96, 256)]
    (tmp_path / "paged_decode_1.before_layout_inference.txt").unlink()
    assert not dumped(2, MLIR.replace("c264 =", "c132 =")), "another kernel"


def test_xlas_launches():
    assert ptxas.xla_launches(THUNKS) == {
        "loop_gather_fusion_1": ptxas.Launch(26, 128, 0),
        "paged_decode_triton": ptxas.Launch(528, 128, 20736),
    }


def test_the_kernel_of_a_ptx_module():
    assert ptxas.entry_name(".visible .entry paged_decode_triton(\n.param .u64 x)") == "paged_decode_triton"
    assert ptxas.entry_name(".version 8.5") == ""


def test_limits_are_read_from_the_description():
    assert ptxas.limits(TARGET + "core_count: 132") == LIMITS


@pytest.mark.parametrize(
    ("registers", "threads", "smem_bytes", "ctas"),
    [
        (96, 256, 105600, 2),  # shared memory
        (168, 384, 0, 1),  # registers: 12 warps x 5376
        (255, 128, 0, 2),  # 8160 registers of a warp round up to 8192
        (16, 1024, 0, 2),  # threads
        (16, 32, 0, 32),  # as many as there may be
    ],
)
def test_ctas_of_a_core(registers, threads, smem_bytes, ctas):
    assert ptxas.ctas_per_core(resources(registers, threads, smem_bytes), LIMITS) == ctas
