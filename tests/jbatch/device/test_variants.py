"""Program variants on the tiny model: each with its own state, and engines that choose among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.process import extra_bytes, features_of
from jbatch.device.programs import Program
from jbatch.errors import RequestError
from jbatch.host.limits import StepLimits
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from tests.helpers.interrupts import interrupt_the_runner
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import (
    DECODE,
    NUM_ROWS,
    PREFILL,
    drain,
    generate_alone,
    make_engine,
    make_runner,
    make_scheduler,
    runner_of_all,
    shared_runner,
)

VOCAB = 96
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
ALL = {**GREEDY, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25,
       "logit_bias": {3: 2.0, 60: -5}, "logprobs": 2, "prompt_logprobs": 1}  # fmt: skip


def test_alias_bytes_are_both_states():
    """Of all programs: the engine's state, and that of the features that a program has."""
    runner = runner_of_all()
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._state))
    for program, compiled in runner._programs.items():
        extra = extra_bytes(program.sampler, NUM_ROWS, VOCAB)
        assert compiled.memory_analysis().alias_size_in_bytes == state + extra
    for feature, set_row in runner._features._set_row.items():
        leaves = jax.tree.leaves(runner._features.state[feature])
        assert set_row.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)
    assert runner._pages._copy.memory_analysis().alias_size_in_bytes == state


def test_each_variant_brings_its_own_state_and_no_other():
    """Log-probabilities bring no penalties along, and penalties no log-probabilities."""
    processing = {"bias", "bad_words", "counts"}
    assert {sampler: set(features_of(sampler)) for sampler in Sampler} == {
        Sampler.GREEDY: set(),
        Sampler.PLAIN: set(),
        Sampler.FILTERED: set(),
        Sampler.LOGPROBS: {"logprob_ids"},
        Sampler.PROCESSED: processing,
        Sampler.EXTENDED: {*processing, "logprob_ids"},
    }


# Programs are chosen.


def test_prepare_compiles_what_is_missing_and_the_rest_stays():
    runner = make_runner(Sampler.GREEDY, buckets=(DECODE, PREFILL))
    assert runner.samplers == (Sampler.GREEDY,) and not runner._features.state
    assert set(runner._programs) == {Program(PREFILL, Sampler.FILTERED), Program(DECODE, Sampler.GREEDY)}
    compiled = dict(runner._programs)
    runner.declare([Sampler.PLAIN, Sampler.EXTENDED])
    assert runner.num_programs == 2 and not runner._features.state, "declared, and no more"
    runner.prepare(in_run=True)
    assert runner.num_programs == 5
    assert runner.samplers == (Sampler.GREEDY, Sampler.PLAIN, Sampler.EXTENDED)
    assert set(runner._features.state) == {"bias", "bad_words", "counts", "logprob_ids"}
    assert all(runner._programs[program] is compiled[program] for program in compiled)
    compiled = runner.compilations_after_warmup
    assert compiled >= 3, "what is compiled in the middle of a run counts, whoever asked for it"
    runner.declare([Sampler.PLAIN])
    runner.prepare(in_run=True)
    assert runner.compilations_after_warmup == compiled
    jax.jit(lambda x: x + 3)(jnp.zeros(7)).block_until_ready()
    assert runner.compilations_after_warmup > compiled, "what others compile counts"
    runner.close()
    assert not runner._features.state


def test_requests_of_two_variants_in_one_step():
    """One reports log-probabilities and one has penalties; each way of drawing was prepared by itself."""
    runner = make_runner(Sampler.LOGPROBS)
    runner.declare([Sampler.PROCESSED])
    runner.prepare()
    assert runner.samplers == (Sampler.LOGPROBS, Sampler.PROCESSED, Sampler.EXTENDED)
    engine = make_engine(runner=runner)
    engine.add_request("reported", [5, 6], SamplingParams(**GREEDY, logprobs=1))
    engine.add_request("penalised", [5, 6], SamplingParams(**GREEDY, repetition_penalty=2.0))
    outputs = drain(engine)
    tokens = {name: output.outputs[0].token_ids for name, output in outputs.items()}
    assert [next(iter(entry)) for entry in outputs["reported"].outputs[0].logprobs] == tokens["reported"]
    assert tokens["reported"] == generate_alone([5, 6], SamplingParams(**GREEDY)).outputs[0].token_ids
    assert tokens["penalised"] != tokens["reported"]
    runner.close()


def test_requests_that_need_less_run_on_what_is_compiled():
    """Same tokens as on their own programs."""
    params = [
        SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
        SamplingParams(temperature=0.9, max_tokens=9, seed=3, ignore_eos=True),
        SamplingParams(temperature=0.9, max_tokens=9, seed=3, top_k=5, top_p=0.8, ignore_eos=True),
    ]
    engine = make_engine(runner=extended_runner())
    for idx, one in enumerate(params):
        engine.add_request(str(idx), [5, 6, 7], one)
    outputs = drain(engine)
    for idx, one in enumerate(params):
        assert outputs[str(idx)].outputs == generate_alone([5, 6, 7], one).outputs


def test_a_request_whose_programs_are_missing_is_refused():
    engine = make_engine()
    with pytest.raises(RequestError, match="not compiled"):
        engine.add_request("r", [1], SamplingParams(logprobs=1))
    assert not engine.has_unfinished


@functools.cache
def extended_runner():
    return make_runner(Sampler.EXTENDED)


def generate(prompts, params, *, chunk=64, num_pages=64, overlap=True):
    scheduler = make_scheduler(num_pages=num_pages, limits=lambda view: StepLimits(chunk, NUM_ROWS))
    engine = make_engine(scheduler, runner_of_all(), overlap=overlap)
    for idx, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(idx), prompt, one)
    outputs = drain(engine)
    return [outputs[str(idx)] for idx in range(len(prompts))], engine.summary


def prompts_of(num):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in rng.integers(1, 40, num)]


def test_neighbours_that_ask_for_more_change_nothing():
    """Greedy and sampled requests, some of whose steps report and change logits, and some do not."""
    prompts = prompts_of(12)
    plain = [SamplingParams(**{**GREEDY, "temperature": idx % 2, "seed": idx}) for idx in range(12)]
    alone, _ = generate(prompts, plain)
    mixed = [SamplingParams(**ALL) if idx % 4 == 3 else one for idx, one in enumerate(plain)]
    among, _ = generate(prompts, mixed)
    for idx in range(12):
        if idx % 4 != 3:
            assert among[idx].outputs == alone[idx].outputs
    assert {output.outputs[0].logprobs is None for output in among[3::4]} == {False}


@pytest.mark.parametrize("chunk, num_pages", [(16, 64), (64, 9), (16, 9)])
def test_chunks_and_preemption_change_nothing(chunk, num_pages):
    """Tokens are the same, and log-probabilities but for rounding; nothing is missing or there twice."""
    prompts = prompts_of(10)
    params = [SamplingParams(**{**ALL, "max_tokens": 30, "n": 1 + idx % 2}) for idx in range(10)]
    expected, _ = generate(prompts, params)
    found, summary = generate(prompts, params, chunk=chunk, num_pages=num_pages)
    assert (summary.num_preempted > 0) == (num_pages == 9)
    for output, other in zip(found, expected, strict=True):
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
        assert_same(output.prompt_logprobs[1:], other.prompt_logprobs[1:])
        for one, same in zip(output.outputs, other.outputs, strict=True):
            assert one.token_ids == same.token_ids
            assert_same(one.logprobs, same.logprobs)


def assert_same(entries, others):
    for entry, other in zip(entries, others, strict=True):
        assert list(entry) == list(other)
        values = [[x.logprob for x in one.values()] for one in (entry, other)]
        np.testing.assert_allclose(*values, atol=1e-5)


def test_a_prompt_alone_is_scored():
    """With max_tokens=0: as many samples as are asked for, none of which has a token, beside others."""
    prompt = prompts_of(1)[0]
    (scored, other), summary = generate(
        [prompt, [5, 6]], [SamplingParams(max_tokens=0, prompt_logprobs=2, n=2), SamplingParams(**GREEDY)]
    )
    (expected,), _ = generate([prompt], [SamplingParams(**GREEDY, prompt_logprobs=2)])
    assert_same(scored.prompt_logprobs[1:], expected.prompt_logprobs[1:])
    assert [(one.token_ids, one.finish_reason) for one in scored.outputs] == [([], "length")] * 2
    assert summary.output_tokens == len(other.outputs[0].token_ids) == 12
    (empty,), summary = generate([prompt], [SamplingParams(max_tokens=0, logprobs=1)])
    assert empty.outputs[0].token_ids == [] and not summary.decode_steps


def test_nothing_left_to_draw_ends_one_request_alone():
    params = [
        SamplingParams(**GREEDY, allowed_token_ids=[7], stop_token_ids=[7], min_tokens=1),
        SamplingParams(**GREEDY, allowed_token_ids=[7]),
    ]
    (bad, good), _ = generate([[5, 6], [5, 6]], params)
    assert bad.outputs[0].finish_reason == "error" and bad.outputs[0].token_ids == []
    assert "no token is left to draw at position 2" in bad.error
    assert good.outputs[0].token_ids == [7] * 12 and good.error is None


def test_a_nan_in_the_cache_ends_one_row_alone():
    """Its prompt log-probabilities are there as far as they are numbers."""
    runner = runner_of_all()
    good, _ = generate([[5, 6]], [SamplingParams(**ALL)])
    engine = make_engine(make_scheduler(limits=lambda view: StepLimits(16, NUM_ROWS)), runner)
    engine.add_request("bad", list(range(20, 45)), SamplingParams(**ALL))
    engine.add_request("good", [5, 6], SamplingParams(**ALL))
    engine.step()
    page = engine.scheduler.running[0].pages[0]
    state = runner._state
    runner._state = state._replace(
        kv_pages=tuple(pages.at[page, :, :, 3].set(jnp.nan) for pages in state.kv_pages)
    )
    outputs = drain(engine)
    runner._state = runner._state._replace(
        kv_pages=tuple(jnp.nan_to_num(pages) for pages in runner._state.kv_pages)
    )
    assert outputs["bad"].outputs[0].finish_reason == "error" and "not finite" in outputs["bad"].error
    assert outputs["good"].outputs[0].token_ids == good[0].outputs[0].token_ids


def test_ordinary_steps_stay_one_dispatch(monkeypatch):
    """A row's data goes up once, before the step that draws first, and only where a request has some."""
    runner, calls = runner_of_all(), []
    counting = {
        name: lambda *args, name=name, set_row=set_row: calls.append(name) or set_row(*args)
        for name, set_row in runner._features._set_row.items()
    }
    monkeypatch.setattr(runner._features, "_set_row", counting)
    generate([[5] * 40, [6]], [SamplingParams(**ALL), SamplingParams(**GREEDY, logprobs=1)], chunk=16)
    assert sorted(calls) == ["bias", "counts"]
    calls.clear()
    generate([[6]], [SamplingParams(**GREEDY, logprob_token_ids=[3])])
    assert calls == ["logprob_ids"]


def test_an_interrupt_anywhere_leaves_the_state_of_features_usable():
    """Steps take that of penalties and biases, too, and so does what puts a row's data in place."""
    runner, params = runner_of_all(), SamplingParams(**{**ALL, "max_tokens": 2, "logprob_token_ids": [5]})
    engine = make_engine(runner=runner)
    engine.add_request("alone", [5, 6], params)
    alone = drain(engine)["alone"].outputs
    number = lost = 0
    while interrupt_the_runner(engine, params, number, "opcode", only="put_row"):
        lost += runner._is_lost() and not runner._state.rows.is_deleted()
        engine.add_request("alone", [5, 6], params)
        assert drain(engine)["alone"].outputs == alone
        number += sized(7, 1)
    assert number > 100 and lost > 0, "none came where only a feature's state was away"


# Log-probabilities of what was drawn from.


@functools.cache
def runner_of_processed_logprobs():
    return make_runner(Sampler.EXTENDED, logprobs_mode="processed_logprobs")


def drawn_from(raw, params, output):
    """The log-probabilities of the next token by vLLM's definition, from the model's own, in NumPy."""
    x = raw.astype(np.float64)
    seen = np.isin(np.arange(VOCAB), output)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    if params.allowed_token_ids:
        x[np.setdiff1d(np.arange(VOCAB), params.allowed_token_ids)] = -np.inf
    x -= params.presence_penalty * seen
    if params.temperature >= 1e-5:
        x = x / params.temperature
        likely = np.exp(x - x.max())
        x[likely < params.min_p] = -np.inf
        order = np.argsort(-x)
        if params.top_k:
            x[order[params.top_k :]] = -np.inf
        share = np.exp(x[order] - x.max()) / np.exp(x - x.max()).sum()
        x[order[np.cumsum(share) - share >= params.top_p]] = -np.inf
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "presence_penalty": 1.5, "top_k": 3, "top_p": 0.5},  # greedy has no filters
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 0.8, "top_p": 0.7, "min_p": 0.02},
        {"temperature": 90, "allowed_token_ids": [3, 60, 61], "logit_bias": {3: 1.5}},
        {"temperature": 1.3, "presence_penalty": 0.7, "logit_bias": {60: -5, 7: 3}, "top_k": 30},
    ],
)
def test_processed_logprobs_are_those_of_the_distribution_that_was_drawn_from(options):
    ids = list(range(32))
    params = SamplingParams(**options, seed=3, max_tokens=4, ignore_eos=True, logprobs=20,
                            prompt_logprobs=1, logprob_token_ids=ids)  # fmt: skip
    engine = make_engine(runner=runner_of_processed_logprobs())
    engine.add_request("r", [5, 6, 7], params)
    output = drain(engine)["r"]
    completion = output.outputs[0]
    assert completion.token_ids == generate_with_all([5, 6, 7], params).token_ids
    for at, entry in enumerate(completion.logprobs):
        before = completion.token_ids[:at]
        expected = drawn_from(raw_logprobs((5, 6, 7, *before)), params, before)
        found = np.array([entry[token].logprob for token in entry])
        np.testing.assert_allclose(found, expected[list(entry)], atol=2e-3)
        assert set(ids) <= set(entry) and np.isfinite(found[0])
        if not options.get("top_k") and not options.get("allowed_token_ids"):
            assert np.exp(expected).sum() == pytest.approx(1)
    likely = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], [6, 7], strict=True)]
    raw = [raw_logprobs((5,))[6], raw_logprobs((5, 6))[7]]
    np.testing.assert_allclose(likely, raw, atol=1e-3, err_msg="the prompt's are the model's own")


def generate_with_all(prompt, params):
    engine = make_engine(runner=runner_of_all())
    engine.add_request("r", prompt, params)
    return drain(engine)["r"].outputs[0]


@functools.cache
def raw_logprobs(prompt):
    """The model's own, of every token to come: 32 of them at a time."""
    found = np.zeros(VOCAB)
    for begin in range(0, VOCAB, 32):
        ids = list(range(begin, begin + 32))
        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=ids)
        (entry,) = generate_with_all(list(prompt), params).logprobs
        found[ids] = [entry[token].logprob for token in ids]
    return found


def test_the_mode_changes_reports_and_no_other_program():
    """Engines that do not ask for it pay nothing, and those that do pay in steps that report alone."""
    raw = shared_runner().spec
    processed = raw._replace(logprobs_mode="processed_logprobs")
    for sampler in (Sampler.GREEDY, Sampler.PROCESSED, Sampler.LOGPROBS):
        texts = {spec.lower(Program(DECODE, sampler)).as_text() for spec in (raw, processed)}
        assert len(texts) == 1 + sampler.reports
