"""The PyTorch engine's Triton decode kernel, interpreted on the CPU, against float64 and plain PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found():
    """What a process of its own says; triton must be told of its interpreter before it is imported."""
    command = [sys.executable, "-m", "tests.helpers.triton_cases"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_attention_is_right_to_rounding(found):
    """NaN lies wherever nothing may be read: one that is read shows as NaN, which fails the comparison."""
    assert len(found["cases"]) == 10
    wrong = {
        name: got for name, got in found["cases"].items() if not (got["kernel"] <= 1 and got["gather"] <= 1)
    }
    assert not wrong


def test_a_slot_without_tokens_is_zero(found):
    assert all(got["dead"] == 0 for got in found["cases"].values())


def test_bits_do_not_depend_on_neighbours(found):
    assert all(got["alone"] == 0 for got in found["cases"].values())


def test_an_engine_on_the_kernel_gives_the_same_tokens(found):
    assert found["engine"]["triton"] == found["engine"]["gather"]
    assert sorted(map(len, found["engine"]["triton"].values())) == [3, 3, 3, 3]


def test_splits_fill_a_gpu_and_no_more(found):
    assert found["splits"] == [4, 1, 1]


def test_it_compiles_for_a_gpu_that_is_not_here():
    """With the tensor cores, and loads that run ahead of them, as far as the code tells."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from bench.compare.torch_engine.triton_decode import _attend

    sizes = {"group": 4, "padded_group": 16, "head_dim": 128, "padded_dim": 128}
    constants = {**sizes, "page_size": 64, "num_splits": 8, "block": 64}
    types = {"q_ptr": "*bf16", "kv_ptr": "*bf16", "tables_ptr": "*i32", "lens_ptr": "*i32", "scale": "fp32"}
    others = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in _attend.arg_names}
    signature = others | types | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in signature if name not in (*constants, "scale", "num_heads", "table_slot")]
    places = {name: (idx,) for idx, name in enumerate(_attend.arg_names)}
    source = ASTSource(
        _attend,
        signature,
        {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in aligned},  # as they are in a real call
    )
    code = compile(source, target=GPUTarget("cuda", 90, 32))
    assert code.asm["cubin"] and "mma" in code.asm["ptx"] and "cp.async" in code.asm["ptx"]
