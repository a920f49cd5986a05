"""What whole models' steps are compared with, and which attention they recommend."""

import types

import pytest

from bench.steps import command as steps
from bench.steps import step_model
from bench.steps.command import CONTEXTS, PROMPTS, TINY, Case, todo
from bench.steps.step_model import Rates, own_pages, state_shape


def test_the_floor_of_a_decode_step_is_what_it_reads():
    config, rates = TINY.config, Rates(read_bytes_per_s=1e3, gemm_flop_per_s=1e30)
    case = Case("decode", 2, 40)
    attention = 64 * (4 + 2 * 2) * 64 + 4 * 64 * 64
    read = 4 * (2 * (attention + 3 * 64 * 96) + 96 * 64)  # float32; the embedding is looked up
    cache = 2 * (40 + 6 / 2) * 2 * 2 * 2 * 64 * 4  # it grows by a token in each of 6 calls
    assert case.floor(config, 6, rates) == pytest.approx((read + cache) / 1e3)


def test_the_floor_of_a_prefill_step_is_what_it_multiplies():
    config, rates = TINY.config, Rates(read_bytes_per_s=1e30, gemm_flop_per_s=1e3)
    one, two = (Case("prefill", number, 32).floor(config, 1, rates) for number in (1, 2))
    assert two == pytest.approx(2 * one) and one > 0


def test_what_is_measured():
    decode, prefill = todo("decode", False), todo("prefill", False)
    assert [size.name for size, _ in decode] == list(CONTEXTS)
    assert {case.number for case in decode[0][1]} == {1, 8, 32, 64, 128, 256}
    for size, cases in prefill:
        assert {(case.number, case.length) for case in cases} == set(PROMPTS)
        assert all(case.length <= size.context for case in cases)


def test_after_the_first_decode_step_only_the_fastest_attention_is_measured(monkeypatch):
    class Model:
        lost = False

        def __init__(self, *args):
            pass

        def close(self):
            pass

    def measure_one(model, case, backend, run):
        if backend == "mosaic" or (backend, case.number) == ("xla", 2):
            return {"status": "failed", "reason": "no"}
        return {"status": "ok", "ms": {"triton": 3.0, "xla": 2.0}[backend]}

    def measured(kind, numbers):
        found = []
        run = types.SimpleNamespace(
            add=lambda size, case, backend, **row: found.append((case.number, backend))
        )
        cases = [Case(kind, number, 16) for number in numbers]
        steps.measure(TINY, cases, run, deadline=float("inf"))
        return found

    monkeypatch.setattr(steps, "Model", Model)
    monkeypatch.setattr(step_model, "why_too_large", lambda *args: None)
    monkeypatch.setattr(steps, "_measure_one", measure_one)
    first = [(8, "mosaic"), (8, "triton"), (8, "xla")]
    assert measured("decode", (8, 1, 2)) == [*first, (1, "xla"), (2, "xla"), (2, "triton")]
    assert len(measured("prefill", (8, 1))) == 6


def test_no_page_is_owned_twice():
    shape = state_shape(TINY, 4)
    pages = own_pages(shape)
    assert sorted(pages.ravel()) == list(range(1, shape.num_pages))
