"""The two forms of plain JAX: the reference, which nothing on a CPU runs, and the one that a CPU does run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import cpu, reference
from tests.helpers.attention_cases import make_case
from tests.helpers.kernel_checks import check_close

SIZES = {"num_heads": 6, "kv_heads": 2, "head_dim": 16}
# Tokens of each slot: more of them than a turn takes, dead ones between, blocks of the longest that others
# lack; and one slot alone, whose turns are longer.
DECODE = {"ragged": [5, 0, 300, 64, 65, 1, 127, 128, 129, 0, 17, 600], "one": [513], "none": [0, 0]}
# (queries, tokens): prompts of several tiles, chunks of them, a single token.
PREFILL = {"ragged": [(130, 130), (0, 0), (1, 200), (40, 300), (129, 257)], "one": [(300, 300)]}


@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("lengths", DECODE)
@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_decode(module, lengths, page_size, monkeypatch):
    monkeypatch.setattr(cpu, "TURN_BYTES", 8 * 2 * 2 * 16 * 4 * 64)  # 8 slots in a turn
    kv_lens = DECODE[lengths]
    q_lens = [min(length, 1) for length in kv_lens]
    case = make_case(0, q_lens, kv_lens, page_size=page_size, decode=True, loudness=2.0, **SIZES)
    tables = (case.block_tables, case.kv_lens)
    check_close(attend(module.paged_decode, case, *tables), case, np.ones(len(kv_lens), bool))


@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize("lengths", PREFILL)
@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_prefill(module, lengths, page_size):
    q_lens, kv_lens = zip(*PREFILL[lengths], strict=True)
    case = make_case(0, q_lens, kv_lens, page_size=page_size, loudness=2.0, **SIZES)
    ragged = (case.block_tables, case.q_starts, case.q_lens, case.kv_lens)
    check_close(attend(module.paged_prefill, case, *ragged), case, case.live)


def test_a_slots_bits_are_its_own():
    """Wherever its neighbours' lengths place it among the turns."""
    monotone = list(range(10, 10 + 40 * 20, 40))
    case = make_case(0, [1] * 20, monotone, page_size=16, decode=True, **SIZES)
    whole = attend(cpu.paged_decode, case, case.block_tables, case.kv_lens)
    rng = np.random.default_rng(0)
    for _ in range(3):
        kept = rng.random(20) < 0.5
        lens = np.where(kept, case.kv_lens, rng.integers(0, 2, 20)).astype(np.int32)
        some = attend(cpu.paged_decode, case, case.block_tables, lens)
        np.testing.assert_array_equal(some[kept], whole[kept])


def test_the_reference_knows_how_often_each_of_its_loops_turns():
    """On a GPU, the host would be asked after each turn of another one."""
    case = make_case(0, [1, 1], [40, 2000], page_size=16, decode=True, **SIZES)
    arrays = (case.q, case.kv_pages, case.block_tables)
    ragged = (case.q_starts, case.q_lens, case.kv_lens)
    for function, more in ((reference.paged_decode, (case.kv_lens,)), (reference.paged_prefill, ragged)):
        program = str(jax.make_jaxpr(functools.partial(function, scale=1.0))(*arrays, *more))
        assert "scan[" in program and "while[" not in program
    assert "while[" in str(
        jax.make_jaxpr(functools.partial(cpu.paged_decode, scale=1.0))(*arrays, case.kv_lens)
    )


@pytest.mark.parametrize("longest", [1, 127, 128, 129, 300, 1000])
def test_turns_behind_the_end_change_no_bit(longest):
    """Of the reference: a neighbour decides how many there are."""
    case = make_case(0, [1, 1], [100, 1000], page_size=16, decode=True, **SIZES)
    lens = np.array([100, longest], np.int32)
    answer = attend(reference.paged_decode, case, case.block_tables, lens)
    alone = attend(reference.paged_decode, case, case.block_tables, lens * np.array([1, 0], np.int32))
    np.testing.assert_array_equal(answer[0], alone[0])


def attend(function, case, *arrays):
    q, kv_pages = (jnp.asarray(array, case.dtype) for array in (case.q, case.kv_pages))
    compiled = jax.jit(functools.partial(function, scale=case.scale))
    return np.asarray(compiled(q, kv_pages, *map(jnp.asarray, arrays)), np.float64)
