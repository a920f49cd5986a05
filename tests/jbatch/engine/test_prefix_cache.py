"""Pages shared, on a real model: what is found, and that answers are the same with it and without."""

import random

import pytest

from jbatch.engine.prompts import list_requests
from jbatch.errors import RequestError
from jbatch.host.limits import StepLimits
from jbatch.sampling_params import SamplingParams
from tests.helpers.tiny_engine import (
    MIXED,
    PAGE_SIZE,
    drain,
    make_engine,
    make_runner,
    make_scheduler,
    runner_of_all,
    shared_runner,
)

STEM = random.Random(1).choices(range(96), k=3 * PAGE_SIZE)
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def engine_of(runner=None, **changes):
    return make_engine(make_scheduler(**changes), runner or shared_runner())


def answer(engine, prompt, params=GREEDY, request_id="r", **fields):
    engine.add_request(request_id, prompt, params, **fields)
    return drain(engine)[request_id]


def test_outputs_say_how_much_of_their_prompt_was_cached():
    engine = engine_of()
    first, second = answer(engine, [*STEM, 1]), answer(engine, [*STEM, 2])
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 3 * PAGE_SIZE)
    assert second.outputs[0].token_ids == answer(engine_of(), [*STEM, 2]).outputs[0].token_ids
    summary = engine.summary
    assert (summary.found, summary.looked_up) == (48, 98)
    assert "49% of prompts' tokens from the cache" in summary.describe()
    assert summary.useful_prefill_tokens == 49 + 1


def test_of_several_samples_the_first_one_counts():
    engine = engine_of()
    answer(engine, [*STEM, 1])
    several = answer(engine, [*STEM, 2], SamplingParams(temperature=0, max_tokens=2, n=3))
    assert several.num_cached_tokens == 3 * PAGE_SIZE


def test_a_reset_is_refused_while_requests_run_and_forgets_all():
    engine = engine_of()
    engine.add_request("r", [*STEM, 1], GREEDY)
    engine.step()
    assert engine.reset_prefix_cache() is False
    drain(engine)
    assert engine.reset_prefix_cache() is True
    assert answer(engine, [*STEM, 1]).num_cached_tokens == 0
    assert answer(engine, [*STEM, 1]).num_cached_tokens == 3 * PAGE_SIZE


def test_a_salt_is_of_the_prompt():
    """As vLLM's dictionaries have it."""
    engine, found = engine_of(), []
    for idx, salt in enumerate(("a", None, "a", "b", None)):
        prompt = {"prompt_token_ids": [*STEM, 1], "cache_salt": salt}
        (request,) = list_requests(prompt, GREEDY, {}, iter([idx]))
        assert request.add_to(engine) is None
        found.append(drain(engine)[str(idx)].num_cached_tokens)
    assert found == [0, 0, 48, 0, 48]


@pytest.mark.parametrize("salt", ["", "x" * 1025, 5, b"a"])
def test_a_salt_that_is_none_is_refused(salt):
    with pytest.raises(RequestError, match=r"^cache_salt="):
        engine_of().add_request("r", [1], GREEDY, cache_salt=salt)


def test_pages_that_another_engine_wrote_to_are_not_found():
    """Both are on one device state, and each has a pool of its own: the same pages."""
    one, other = engine_of(), engine_of()
    right = answer(one, [*STEM, 1]).outputs[0].token_ids
    answer(other, [7] * 60)
    again = answer(one, [*STEM, 1])
    assert again.outputs[0].token_ids == right and again.num_cached_tokens == 0
    assert answer(one, [*STEM, 1]).num_cached_tokens == 48


def test_what_was_in_flight_when_another_engine_came_is_not_found():
    """One step ahead: the last step of the first engine lands after the other's."""
    one, other = engine_of(), engine_of()
    one.add_request("r", [*STEM, 1], SamplingParams(temperature=0, max_tokens=1))
    one.step()
    one.abort("r")
    answer(other, [7] * 60)
    drain(one)
    right = answer(engine_of(), [*STEM, 1]).outputs[0].token_ids
    again = answer(one, [*STEM, 1])
    assert again.outputs[0].token_ids == right and again.num_cached_tokens == 0


def test_a_device_that_lost_its_state_holds_nothing(monkeypatch):
    """Between two requests, as by an interrupt while a program was being prepared."""
    runner = make_runner(buckets=(MIXED,))
    engine = engine_of(runner, buckets=(MIXED,))
    right = answer(engine, [*STEM, 1]).outputs[0].token_ids

    def interrupted():
        runner._state.rows.delete()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "_whole_state", interrupted)
        runner.warm_up()
    again = answer(engine, [*STEM, 1])
    assert again.outputs[0].token_ids == right and again.num_cached_tokens == 0
    runner.close()


# Cold and warm: equal bits.

PARAMS = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_k": 20},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
)


def bits(output):
    """Its tokens, and the log-probabilities that they were drawn with: float by float."""
    completion = output.outputs[0]
    return completion.token_ids, [
        {token: value.logprob for token, value in entry.items()} for entry in completion.logprobs
    ]


@pytest.mark.parametrize("budget", [PAGE_SIZE, 40, 64])
@pytest.mark.parametrize("seed", range(3))
def test_cold_and_warm_are_equal_bit_for_bit(seed, budget):
    """In the engine of one program: a prompt alone on an empty cache, and among others on a warm one."""
    rng = random.Random(seed)
    options = {"buckets": (MIXED,), "limits": lambda view: StepLimits(budget, 4)}
    prompts = [STEM[: rng.randint(0, 48)] + rng.choices(range(96), k=rng.randint(1, 24)) for _ in range(10)]
    prompts += [prompts[0], STEM, STEM, STEM[:PAGE_SIZE], STEM[: PAGE_SIZE + 1]]
    params = [
        SamplingParams(**PARAMS[idx % 3], seed=idx, max_tokens=rng.randint(1, 12), logprobs=3)
        for idx in range(len(prompts))
    ]
    warm = engine_of(runner_of_all(), **options)
    outputs = {}
    for idx, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        warm.add_request(str(idx), prompt, sampling)
        for _ in range(rng.randint(1, 8)):
            outputs |= {output.request_id: output for output in warm.step().outputs}
    outputs |= drain(warm)
    for idx, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        cold = answer(engine_of(runner_of_all(), **options), prompt, sampling)
        assert cold.num_cached_tokens == 0 and bits(outputs[str(idx)]) == bits(cold)
    assert sum(output.num_cached_tokens for output in outputs.values()) > 5 * PAGE_SIZE
    assert warm.summary.found > 5 * PAGE_SIZE
