"""n > 1: samples of one request, on a fake device whose samples differ by index, and on a tiny model."""

import jax.numpy as jnp
import pytest

from jbatch.errors import RequestError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES, Policy
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tiny_engine import drain
from tests.helpers.tokenizers import numbered, wrapped

PROMPT = [1, 2]


def make_engine(mode="continuous", overlap=True, policy=None, **changes):
    config = scheduler_config(mode, **changes)
    config = config._replace(policy=policy or config.policy)
    runner = FakeRunner(config.shape, VOCAB_SIZE)
    return tiny_engine.make_engine(
        Scheduler(config), runner, vocab_size=VOCAB_SIZE, tokenizer=wrapped(numbered()), overlap=overlap
    )


def expected(prompt, max_tokens, sample_idx, stop_ids=()):
    return continuation(prompt, max_tokens, VOCAB_SIZE, stop_ids, sample_idx=sample_idx)


def check_clean(engine):
    assert engine.scheduler.pool.num_used == 0 and engine.num_unfinished == 0 and not engine.has_unfinished
    assert not engine.requests.samples and not engine.requests.unfinished


# The fake device.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overlap", [True, False])
def test_each_sample_has_its_own_tokens_in_the_order_of_their_indices(mode, overlap):
    """More samples than rows, among other requests; they end at different steps."""
    engine = make_engine(mode, overlap)
    stop_ids = (3, 30, 60, 90)
    engine.add_request("other", [7], SamplingParams(max_tokens=5))
    engine.add_request("many", PROMPT, SamplingParams(n=9, max_tokens=40, stop_token_ids=stop_ids))
    engine.add_request("two", [5], SamplingParams(n=2, max_tokens=3))
    outputs = drain(engine)
    many = outputs["many"]
    assert [completion.index for completion in many.outputs] == list(range(9))
    lengths = set()
    for idx, completion in enumerate(many.outputs):
        assert completion.token_ids == expected(PROMPT, 40, idx, stop_ids)
        assert completion.finish_reason == ("length" if len(completion.token_ids) == 40 else "stop")
        lengths.add(len(completion.token_ids))
    assert len(lengths) > 2 and many.error is None and many.prompt_token_ids == PROMPT
    assert many.metrics.num_generation_tokens == sum(len(c.token_ids) for c in many.outputs)
    assert many.metrics.scheduled_ts < many.metrics.first_token_ts < many.metrics.last_token_ts
    assert [c.token_ids for c in outputs["two"].outputs] == [expected([5], 3, idx) for idx in range(2)]
    assert outputs["other"].outputs[0].token_ids == expected([7], 5, 0)
    check_clean(engine)


def test_progress_names_the_sample():
    engine = make_engine()
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=4))
    found, ended = {}, []
    while engine.has_unfinished:
        for new in engine.step().progress:
            found.setdefault((new.request_id, new.sample_idx), []).extend(new.token_ids)
            if new.completion is not None:
                assert new.completion.token_ids == found[new.request_id, new.sample_idx]
                ended.append(new.completion.index)
    assert found == {("r", idx): expected(PROMPT, 4, idx) for idx in range(3)} and sorted(ended) == [0, 1, 2]


def test_the_output_comes_when_the_last_sample_has_ended():
    engine = make_engine(overlap=False, num_rows=1)
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=2))
    given = [(len(step.outputs), engine.num_unfinished) for step in (engine.step() for _ in range(6))]
    assert given == [(0, 1)] * 5 + [(1, 0)]
    check_clean(engine)


def test_stop_strings_of_each_sample_are_its_own():
    engine = make_engine()
    engine.add_request("r", PROMPT, SamplingParams(n=4, max_tokens=12, stop=["1.2", "7."]))
    for idx, completion in enumerate(drain(engine)["r"].outputs):
        tokens = expected(PROMPT, 12, idx)
        text = "".join(f"{token:02d}." for token in tokens)
        hits = [at for at in (text.find("1.2"), text.find("7.")) if at >= 0]
        assert completion.text == (text[: min(hits)] if hits else text)
        assert completion.finish_reason == ("stop" if hits else "length")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("after", range(8))
def test_abort_ends_all_samples_in_whatever_state_they_are(after, overlap):
    """Two rows for three samples: one waits; some have ended by then."""
    engine = make_engine(overlap=overlap, num_rows=2)
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=2 + after % 3))
    engine.add_request("other", [9], SamplingParams(max_tokens=4))
    outputs = {}
    for _ in range(after):
        outputs |= {output.request_id: output for output in engine.step().outputs}
    for request_id in ("r", "r", "unknown"):
        engine.abort(request_id)
    outputs |= drain(engine)
    assert outputs.keys() == {"r", "other"} and len(outputs["r"].outputs) == 3
    for idx, completion in enumerate(outputs["r"].outputs):
        full = expected(PROMPT, 2 + after % 3, idx)
        assert completion.token_ids == full[: len(completion.token_ids)]
        assert completion.finish_reason == ("length" if completion.token_ids == full else "abort")
    assert outputs["other"].outputs[0].token_ids == expected([9], 4, 0)
    check_clean(engine)


def test_samples_are_preempted_and_come_back():
    engine = make_engine(num_pages=5)  # 4 of 16 tokens, for 4 samples of up to 40
    engine.add_request("r", PROMPT, SamplingParams(n=4, max_tokens=38))
    output = drain(engine)["r"]
    assert [c.token_ids for c in output.outputs] == [expected(PROMPT, 38, idx) for idx in range(4)]
    assert output.metrics.num_preemptions == engine.summary.num_preempted > 0
    check_clean(engine)


def test_an_error_of_one_sample_ends_it_alone(monkeypatch):
    engine = make_engine()
    real = type(engine.tokenizer).decode
    bad = expected(PROMPT, 3, 1)

    def decode(token_ids, **options):
        if token_ids == bad:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return real(engine.tokenizer, token_ids, **options)

    monkeypatch.setattr(engine.tokenizer, "decode", decode)
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=3))
    output = drain(engine)["r"]
    assert [c.finish_reason for c in output.outputs] == ["length", "error", "length"]
    assert output.error.startswith("sample 1: token_ids=") and "sample 0" not in output.error
    assert [c.token_ids for c in output.outputs] == [expected(PROMPT, 3, idx) for idx in range(3)]


def test_a_step_that_fails_ends_every_sample_and_leaves_nothing():
    engine = make_engine()
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=9))
    engine.step()
    real, engine.pipeline.runner = engine.runner, None
    with pytest.raises(AttributeError):
        engine.step()
    engine.pipeline.runner = real
    (output,) = drain(engine).values()
    assert [c.finish_reason for c in output.outputs] == ["error"] * 3
    assert all(f"sample {idx}: a step failed" in output.error for idx in range(3))
    check_clean(engine)


@pytest.mark.parametrize("params", [{"max_tokens": 127}, {"max_tokens": 0}])
def test_no_tokens_and_too_many(params):
    engine = make_engine()
    if params["max_tokens"]:
        with pytest.raises(RequestError, match="max_model_len"):
            engine.add_request("r", PROMPT, SamplingParams(n=3, **params))
    else:
        engine.add_request("r", PROMPT, SamplingParams(n=3, **params))
        assert [(c.index, c.token_ids) for c in drain(engine)["r"].outputs] == [(0, []), (1, []), (2, [])]
    check_clean(engine)


def test_a_policy_is_asked_once_for_all_samples_and_leaves_nothing_where_it_raises():
    asked = []

    def policy(request, now, view):
        asked.append(request.sample_idx)
        return (1 / (len(asked) - 1),)

    engine = make_engine(policy=Policy(policy, rerank_steps=0))
    with pytest.raises(RequestError, match="policy='policy': it fails for this request: ZeroDivisionError"):
        engine.add_request("r", PROMPT, SamplingParams(n=4, max_tokens=2))
    check_clean(engine)
    engine.add_request("r", PROMPT, SamplingParams(n=2, max_tokens=2))
    assert len(drain(engine)["r"].outputs) == 2 and asked == [0, 0]


# The tiny model.

DRAWN = {"temperature": 1.0, "max_tokens": 12, "seed": 5, "ignore_eos": True}


def samples(n, engine=None, prompt=(5, 6), **changes):
    engine = engine or tiny_engine.make_engine()
    engine.add_request("r", prompt, SamplingParams(n=n, **(DRAWN | changes)))
    return [completion.token_ids for completion in drain(engine)["r"].outputs]


def test_samples_differ_and_come_again_and_the_first_is_that_of_n_1():
    many = samples(16)
    assert len({tuple(tokens) for tokens in many}) == 16
    assert samples(16) == many and samples(3) == many[:3] and samples(1) == many[:1]
    assert samples(1, seed=6) != many[:1]


FEATURES = {
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "bias": {"logit_bias": {3: 4.0, 9: -2.0}},
    "allowed": {"allowed_token_ids": list(range(40))},
    "filters": {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "min_tokens": 5, "stop_token_ids": list(range(15))},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 2, "logprob_token_ids": [3]},
    "all": {"logprobs": 1, "frequency_penalty": 1.0, "logit_bias": {3: 4.0}},
}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("feature", FEATURES)
def test_samples_on_one_prompt_are_those_that_run_one_by_one(feature, overlap):
    """The prompt's second page is not full: three samples copy it, the fourth keeps it."""
    outputs = []
    for num_seqs in (4, 1):
        scheduler = tiny_engine.make_scheduler(limits=lambda view, n=num_seqs: StepLimits(64, n))
        engine = tiny_engine.make_engine(scheduler, tiny_engine.runner_of_all(), overlap=overlap)
        params = SamplingParams(n=4, **(DRAWN | {"ignore_eos": False} | FEATURES[feature]))
        engine.add_request("r", list(range(21)), params)
        outputs.append(drain(engine)["r"])
        assert engine.summary.useful_prefill_tokens == 21 or num_seqs == 1
    together, one_by_one = outputs
    for ours, alone in zip(together.outputs, one_by_one.outputs, strict=True):
        assert (ours.token_ids, ours.finish_reason) == (alone.token_ids, alone.finish_reason)
        check_logprobs(ours.logprobs, alone.logprobs)
    check_logprobs(together.prompt_logprobs, one_by_one.prompt_logprobs)
    assert len({tuple(sample.token_ids) for sample in together.outputs}) > 1


def check_logprobs(ours, others):
    assert (ours is None) == (others is None)
    for entry, other in zip(ours or (), others or (), strict=True):
        assert (entry or {}).keys() == (other or {}).keys()
        for token, value in (entry or {}).items():
            assert value.logprob == pytest.approx(other[token].logprob, abs=1e-4)


def test_samples_of_a_derived_seed_are_reproducible_too():
    first, second = (
        samples(4, tiny_engine.make_engine(seed=9), seed=None),
        samples(4, tiny_engine.make_engine(seed=9), seed=None),
    )
    assert first == second != samples(4, tiny_engine.make_engine(seed=8), seed=None)


def test_greedy_samples_are_equal():
    assert len({tuple(tokens) for tokens in samples(4, temperature=0)}) == 1


def test_samples_survive_preemption_with_their_own_keys():
    engine = tiny_engine.make_engine(tiny_engine.make_scheduler(num_pages=5))
    tokens = samples(4, engine, max_tokens=40)
    assert engine.summary.num_preempted > 0
    assert tokens == samples(4, max_tokens=40)


def test_a_sample_that_is_not_finite_ends_alone(monkeypatch):
    """The embedding of a token that one sample alone draws is NaN."""
    tokens = samples(4)
    others = {token for idx in (0, 1, 3) for token in tokens[idx]} | {5, 6}
    at, poisoned = next((i, token) for i, token in enumerate(tokens[2][:-1]) if token not in others)
    runner = tiny_engine.shared_runner()
    params = dict(zip(tiny_engine.tiny_params(), runner._params.leaves, strict=True))
    params["embedding"] = params["embedding"].at[poisoned].set(jnp.nan)
    monkeypatch.setattr(runner._params, "leaves", tuple(params.values()))
    engine = tiny_engine.make_engine()
    engine.add_request("r", [5, 6], SamplingParams(n=4, **DRAWN))
    output = drain(engine)["r"]
    assert [c.finish_reason for c in output.outputs] == ["length", "length", "error", "length"]
    assert [c.token_ids for c in output.outputs] == [tokens[0], tokens[1], tokens[2][: at + 1], tokens[3]]
    assert output.error.startswith("sample 2: logits are not finite")
