import pytest

from tools.gate import kernels as gate_kernels
from tools.gate import ptxas
from tools.gate import table as gate_table
from tools.gate.kernel_case import Case
from tools.gate.target import Target


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


def test_a_case_that_does_not_compile_is_a_row(monkeypatch):
    target = Target("h200", None, None, ptxas.Limits(1, 1, 1, 1), None, {})

    def compile_case(case, target):
        raise ValueError("head_dim=64: too small\nsecond line")

    monkeypatch.setattr(gate_kernels, "compile_case", compile_case)
    (found,) = gate_kernels._measure(Case("write", "xla", "llama3-8b", 64, 2**30), target)
    assert (found["status"], found["reason"]) == ("failed", "ValueError: head_dim=64: too small")
    assert found["registers"] is None
    assert gate_table.kernels([found]).endswith("failed")


def test_several_launches_of_a_kernel_are_one_row():
    gather = ptxas.Resources("copy_pages", 30, 0, 4, 128, 10, ())
    scatter = ptxas.Resources("copy_pages", 20, 16, 8, 128, 10, ("remark",))
    target = Target("h200", None, None, ptxas.Limits(65536, 2048, 233472, 132), None, {})
    found = gate_kernels._resources([gather, scatter], target)
    assert (found["registers"], found["spill_bytes"], found["launches"]) == (30, 12, 2)
    assert found["remarks"] == ["remark"]
