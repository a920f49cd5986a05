"""The check of a kernel: a right one passes, and each fault is found."""

import numpy as np
import pytest

from pallas_kernels import proof
from pallas_kernels.problem import Problem

DECODE = Problem("decode", "bfloat16", 8, 8, 4, 2, 64, num_pages=2, page_size=16, pages_per_seq=80)
PREFILL = DECODE._replace(kind="prefill", tokens=512)
ROTATE = DECODE._replace(kind="rotate", tokens=24, slots=24)


@pytest.fixture(scope="module", params=[DECODE, PREFILL, ROTATE], ids=lambda problem: problem.kind)
def trial(request):
    return proof.make_trial(request.param)


@pytest.fixture(scope="module", params=[DECODE, PREFILL], ids=lambda problem: problem.kind)
def attention(request):
    return proof.make_trial(request.param)


def right(trial):
    """The answer, as a kernel would round it."""
    answer = trial.expected.astype(proof.jnp.dtype(trial.problem.dtype))
    answer[~trial.counts] = np.nan
    return answer


def test_a_right_kernel_passes(trial):
    proof.check(lambda: right(trial), trial)


def test_a_kernel_runs_as_an_engine_would_run_it(trial):
    """Triton's, interpreted."""
    proof.check(proof.compile_trial("triton", trial, interpret=True), trial)


def test_a_trial_has_what_kernels_go_wrong_in(attention):
    page = attention.problem.page_size
    tables, kv_lens = attention.ragged[0], attention.ragged[-1]
    assert {page - 1, page, page + 1} & set(kv_lens) and {page} <= set(kv_lens)
    assert 0 in kv_lens and proof.LONG in kv_lens
    if attention.problem.kind == "prefill":  # a mask that begins a key too late shows nowhere else
        positions = kv_lens - attention.ragged[2]
        assert (positions % page == page - 2).any(), "a chunk that begins just before a border"
    used = tables[np.argmax(kv_lens)][: -(-proof.LONG // page)]
    assert len(set(used)) == len(used) and (np.diff(used) < 0).any() and 0 not in used, "permuted"
    nobodys = set(range(len(attention.kv_pages))) - {*tables.ravel()} | {0}
    assert len(nobodys) == 4 and np.isnan(attention.kv_pages[list(nobodys)]).all()
    assert np.isnan(attention.kv_pages).any((1, 2, 4)).any(-1).sum() > 4, "pages that end in the middle"
    assert np.isfinite(attention.expected).all()


@pytest.mark.parametrize("problem", [DECODE, PREFILL], ids=lambda problem: problem.kind)
def test_the_smallest_step_has_a_sequence(problem):
    small = problem._replace(slots=1, tokens=1 if problem.kind == "decode" else 8)
    trial = proof.make_trial(small)
    assert trial.ragged[-1][0] > 16 and trial.counts.all()


def scaled(answer):
    return answer * proof.jnp.bfloat16(1.02)


def one_element(answer):
    answer[np.flatnonzero(np.isfinite(answer).all((1, 2)))[-1], -1, -1] += 1
    return answer


def one_nan(answer):
    answer[0, 0, 0] = np.nan
    return answer


def heads_in_another_order(answer):
    return answer[:, ::-1]


@pytest.mark.parametrize("break_", [scaled, one_element, one_nan, heads_in_another_order, np.zeros_like])
def test_a_wrong_answer_is_found(break_, trial):
    with pytest.raises(proof.WrongAnswer, match=r"elements of a (decode|prefill|rotate) of .* are wrong: "):
        proof.check(lambda: break_(right(trial)), trial)


def test_a_dead_slot_answers_zeros():
    trial = proof.make_trial(DECODE)
    answer = right(trial)
    answer[trial.ragged[-1] == 0] = 1
    with pytest.raises(proof.WrongAnswer, match="instead of 0 "):
        proof.check(lambda: answer, trial)


def test_other_bits_the_second_time_are_found(trial):
    """Though both answers are right to the dtype's precision."""
    answers = [right(trial), right(trial)]
    bits = answers[1].view(np.uint16)
    bits[0, 0, 0] ^= 1
    with pytest.raises(proof.WrongAnswer, match=r"1 of \d+ rows of a .* have other bits the second time"):
        proof.check(lambda: answers.pop(0), trial)


def test_pages_that_are_mixed_up_are_found(attention):
    """What plain JAX answers with the pages of another sequence's tables."""
    tables, *lengths = attention.ragged
    mixed = np.where(tables > 0, np.sort(tables, axis=1)[:, ::-1], 0)
    answer, _ = proof._in_plain_jax(attention.problem, attention.q, attention.kv_pages, (mixed, *lengths))
    with pytest.raises(proof.WrongAnswer):
        proof.check(lambda: answer.astype(right(attention).dtype), attention)
