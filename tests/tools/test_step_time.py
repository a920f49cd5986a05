"""The estimate of a step, from a program whose bytes are counted by hand."""

import pytest

from tools import step_time
from tools.gate import hlo

PROGRAM = """\
ENTRY %main (x: bf16[64,4096]) -> bf16[64,4096] {
  %x = bf16[64,4096]{1,0} parameter(0)
  %w = bf16[4096,4096]{1,0} parameter(1)
  %pool = bf16[800,2,8,64,128]{4,3,2,1,0} parameter(2)
  %table = bf16[128256,4096]{1,0} parameter(3)
  %gathered = bf16[64,4096]{1,0} fusion(%table, %x), metadata={op_name="jit(step)/gather"}
  %product = bf16[64,4096]{1,0} fusion(%gathered, %w), metadata={op_name="jit(step)/dot_general"}
  ROOT %attended = bf16[64,4096]{1,0} custom-call(%product, %pool), metadata={op_name="paged_attention/x"}
}
"""
ROW = 64 * 4096 * 2  # bytes


def test_kernels_and_their_bytes():
    found = list(step_time.launches(hlo.parse(PROGRAM), 800, 2 * 128256 * 4096))
    assert [(launch.kind, launch.weight_bytes, launch.other_bytes) for launch in found] == [
        ("other", 0, 2 * ROW),
        ("gemm", 4096 * 4096 * 2, 2 * ROW),
        ("attention", 0, 0),
    ]


def test_a_product_takes_what_it_reads_or_what_it_multiplies():
    gemm = step_time.Launch("", "gemm", 100 * 10**6, 0)
    few, many = (step_time.seconds(gemm, slots, 0) - step_time.GEMM_LAUNCH_S for slots in (1, 1024))
    assert few == pytest.approx(100e6 / 4.3e12 / 0.85)
    assert many == pytest.approx(1024 * 100e6 / 790e12 / 0.85)


def test_attention_takes_what_it_reads_of_the_cache():
    attention = step_time.Launch("", "attention", 0, 0)
    assert step_time.seconds(attention, 64, 0) == step_time.LAUNCH_S
    assert step_time.seconds(attention, 64, 4.3e12) == pytest.approx(step_time.LAUNCH_S + 1 / 0.85)
