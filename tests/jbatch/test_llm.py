"""LLM on a tiny model directory: what goes in, what comes out, what is refused."""

import asyncio
import contextlib
import dataclasses
import json
import random
import signal
import threading
import time

import jax
import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.engine.engine import Engine
from jbatch.errors import ConfigError, JBatchError, RequestError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES
from jbatch.sampling_params import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.text.chat import ChatTemplate
from jbatch.text.messages import check_messages
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from tests.helpers.tiny_engine import drain
from tests.helpers.tokenizers import numbered, save
from weights import WeightsError

# The sizes of tests/helpers/tiny_engine.py, so that the same programs are read from the cache.
SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": 16,
    "num_pages": 64,
    "decode_buckets": (4,),
    "token_buckets": (64,),
    "batch_wait_timeout_s": 0.01,
}
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    return path


@pytest.fixture(scope="module")
def llm(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        yield llm


def ids_of(outputs):
    return [output.outputs[0].token_ids for output in outputs]


# What is cached.


def test_a_prompt_again_is_found_until_the_cache_is_reset(llm):
    prompt, params = [5] * 40, SamplingParams(temperature=0, max_tokens=2)
    assert llm.reset_prefix_cache()

    def cached():
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        return output.num_cached_tokens

    found = [cached(), cached()]
    assert llm.reset_prefix_cache()
    assert [*found, cached()] == [0, 40 - 40 % llm.config.page_size, 0]


def test_a_cache_may_be_off(model_dir):
    with LLM(model_dir, **SMALL, enable_prefix_caching=False) as llm:
        outputs = [llm.generate([[5] * 40], SamplingParams(max_tokens=1), use_tqdm=False) for _ in range(2)]
    assert [output.num_cached_tokens for (output,) in outputs] == [0, 0]


# Prompts and results.


def test_prompts_of_every_kind(llm):
    kinds = [
        "05.06.",
        [5, 6],
        (5, 6),
        np.asarray([5, 6]),
        {"prompt": "05.06.", "multi_modal_data": None},
        {"prompt_token_ids": [5, 6]},
    ]
    outputs = llm.generate(kinds, GREEDY)
    assert [output.prompt_token_ids for output in outputs] == [[5, 6]] * 6
    assert [output.prompt for output in outputs] == ["05.06.", None, None, None, "05.06.", None]
    assert len({tuple(ids) for ids in ids_of(outputs)}) == 1 and len(ids_of(outputs)[0]) == 6
    assert outputs[0].outputs[0].text == "".join(f"{token_id:02d}." for token_id in ids_of(outputs)[0])


@pytest.mark.parametrize("one", ["05.06.", [5, 6], {"prompt": "05.06."}, np.asarray([5, 6])])
def test_a_single_prompt_needs_no_list(llm, one):
    (output,) = llm.generate(one, GREEDY)
    assert output.prompt_token_ids == [5, 6] and output.finished


def test_no_prompts(llm):
    assert llm.generate([], GREEDY) == []


def test_results_are_in_the_order_of_the_prompts(llm):
    prompts = [[idx, idx + 1] for idx in range(20)]
    params = [
        SamplingParams(temperature=0, max_tokens=1 + 7 * idx % 11, ignore_eos=True) for idx in range(20)
    ]
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(ids) for ids in ids_of(outputs)] == [1 + 7 * idx % 11 for idx in range(20)]
    assert [int(output.request_id) for output in outputs] == sorted(int(o.request_id) for o in outputs)


def test_prompts_that_cannot_be_served_end_alone(llm):
    bad = [
        [1] * 200,
        [],
        "",
        [96],
        [-1],
        ["a"],
        None,
        7,
        {"text": "x"},
        {"prompt": "01.", "prompt_token_ids": [1]},
    ]
    good = [[5, 6], "05.06."]
    outputs = llm.generate([good[0], *bad, good[1]], GREEDY)
    for output in outputs[1:-1]:
        assert output.outputs[0].finish_reason == "error" and output.finished
        assert output.error and output.outputs[0].token_ids == [] and output.outputs[0].text == ""
    assert "96" in outputs[1].error and "96" in outputs[4].error  # the limits are named
    assert ids_of(outputs)[0] == ids_of(outputs)[-1] == ids_of(llm.generate([good[0]], GREEDY))[0]


def test_params_for_each_prompt_must_be_as_many(llm):
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts"):
        llm.generate([[1]] * 3, [GREEDY] * 2)
    with pytest.raises(ValueError, match="2 of priority for 3 prompts: give one for each"):
        llm.generate([[1]] * 3, GREEDY, priority=[1, 2])
    with pytest.raises(TypeError, match="priority=1: give a list of one for each of 3 prompts"):
        llm.generate([[1]] * 3, GREEDY, priority=1)
    assert not llm.engine.has_unfinished or llm.engine.num_unfinished == 0
    assert ids_of(llm.generate([[5, 6]], GREEDY))  # the engine is clean


def test_a_wish_that_is_none_is_an_error_of_its_prompt_alone(llm):
    fine, wrong, half = llm.generate([[1]] * 3, GREEDY, priority=[1, "high", 0.5])
    assert fine.error is None and fine.outputs[0].token_ids
    assert wrong.error == "priority='high': must be an integer from -2147483648 to 2147483647"
    assert half.error == "priority=0.5: must be an integer from -2147483648 to 2147483647"


def test_a_dictionary_with_another_name_says_what_it_may_hold(llm):
    (output,) = llm.generate([{"prompt_token_ids": [1], "cache_slat": "a"}], GREEDY)
    assert output.error and "prompt or prompt_token_ids, and at most cache_salt besides" in output.error


def test_sampled_tokens_depend_on_the_seed_alone(llm):
    seeded = SamplingParams(temperature=1.0, max_tokens=12, seed=5, ignore_eos=True)
    other = SamplingParams(temperature=1.0, max_tokens=12, seed=6, ignore_eos=True)
    alone = ids_of(llm.generate([[5, 6]], seeded))[0]
    among = ids_of(llm.generate([[9], [5, 6], [7, 7, 7], [5, 6]], [GREEDY, seeded, other, other]))
    assert among[1] == alone and among[3] != alone


def test_seeds_beyond_32_bits(llm):
    """As all others: each draws its own, and the same again."""
    seeds = [-(2**63), -2, 5, 2**32 + 5, 2**63 - 1]
    params = [SamplingParams(temperature=1.0, max_tokens=12, seed=seed, ignore_eos=True) for seed in seeds]
    drawn = ids_of(llm.generate([[5, 6]] * 5, params))
    assert len({tuple(ids) for ids in drawn}) == 5 and drawn == ids_of(llm.generate([[5, 6]] * 5, params))


def test_sampling_defaults_of_the_model(model_dir, llm):
    """They are for prompts without parameters alone: with some, these hold as they are."""
    assert llm.get_default_sampling_params() == SamplingParams()
    values = {"top_k": 1, "temperature": 0.6, "max_new_tokens": 90}
    (model_dir / "generation_config.json").write_text(json.dumps(values))
    prompts = [[5, 6]] * 4 + [[5] * 94]
    try:
        with LLM(model_dir, **SMALL) as other:
            defaults = other.get_default_sampling_params()
            assert (defaults.top_k, defaults.temperature, defaults.max_tokens) == (1, 0.6, 90)
            outputs = other.generate(prompts)
            streamed = [delta.output for delta in other.stream(prompts) if delta.output is not None]
            greedy = dataclasses.replace(GREEDY, max_tokens=90, ignore_eos=False)
            (expected,) = ids_of(other.generate([[5, 6]], greedy))
            assert ids_of(outputs)[:4] == [expected] * 4, "top_k=1 is greedy"
            assert len(ids_of(outputs)[4]) in (1, 2), "90 tokens, or what the context has room for"
            assert sorted(ids_of(streamed)) == sorted(ids_of(outputs))
            changed = dataclasses.replace(defaults, temperature=5.0, top_k=0, seed=1)
            assert ids_of(other.generate([[5, 6]], changed)) != [expected]
            sampled = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
            assert ids_of(other.generate([[5, 6]], sampled)) == ids_of(llm.generate([[5, 6]], sampled))
    finally:
        (model_dir / "generation_config.json").unlink()


def test_stop_strings_and_stop_ids(llm):
    ids = ids_of(llm.generate([[5, 6]], GREEDY))[0]
    at = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    stop = f"{ids[at]:02d}"
    by_text, by_id = llm.generate(
        [[5, 6]] * 2,
        [
            SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop=[stop]),
            SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop_token_ids=[ids[at]]),
        ],
    )
    for output, reason in ((by_text.outputs[0], stop), (by_id.outputs[0], ids[at])):
        assert (output.finish_reason, output.stop_reason) == ("stop", reason)
        assert output.token_ids == ids[: at + 1]
        assert output.text.rstrip(".") == ".".join(f"{token_id:02d}" for token_id in ids[:at])


def test_the_end_of_sequence_is_what_config_and_generation_config_name(model_dir, llm):
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    with LLM(model_dir, **SMALL) as other:
        assert other._opened.eos_token_ids == {2, 7, 9}
    (model_dir / "generation_config.json").unlink()
    assert llm._opened.eos_token_ids == {2}


# Samples and streams.


def test_samples_of_a_prompt(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)
    one, many = llm.generate([[5, 6]] * 2, [dataclasses.replace(params, n=1), params])
    assert [completion.index for completion in many.outputs] == [0, 1, 2]
    assert many.outputs[0].token_ids == one.outputs[0].token_ids
    assert len({completion.text for completion in many.outputs}) == 3


STREAMED = [
    GREEDY,
    SamplingParams(n=2, seed=3, max_tokens=20, ignore_eos=True, stop=["1.2", ".3", "7"]),
    SamplingParams(max_tokens=999),  # refused
]


def test_a_stream_gives_the_texts_of_generate(llm):
    prompts = ["05.06.", [7, 8], "01."]
    full = llm.generate(prompts, STREAMED)
    texts = {}
    for delta in llm.stream(prompts, STREAMED):
        key = delta.prompt_idx, delta.sample_idx
        texts[key] = texts.get(key, "") + delta.text
        if delta.output is not None:
            assert delta.output.outputs == full[delta.prompt_idx].outputs
    assert texts == {(i, c.index): c.text for i, output in enumerate(full) for c in output.outputs}
    assert texts[0, 0] and texts[1, 0] != texts[1, 1] and not llm.engine.has_unfinished


def test_a_stream_checks_its_arguments_at_once_and_does_nothing_before_it_is_read(llm):
    with pytest.raises(ValueError, match="2 sampling_params for 1 prompts"):
        llm.stream([[1]], [GREEDY] * 2)
    unread = llm.stream([[1]] * 3, GREEDY)
    assert not llm.engine.has_unfinished
    del unread


def test_leaving_a_stream_early_leaves_the_llm_usable(llm):
    expected = ids_of(llm.generate([[5, 6]], GREEDY))
    for _ in llm.stream([[5, 6], [7]] * 4, GREEDY):
        break
    assert ids_of(llm.generate([[5, 6]], GREEDY)) == expected


def test_an_async_stream(llm):
    expected = [(d.prompt_idx, d.text, d.token_ids) for d in llm.stream([[5, 6], [7]], GREEDY)]

    async def read():
        return [(d.prompt_idx, d.text, d.token_ids) async for d in llm.astream([[5, 6], [7]], GREEDY)]

    assert asyncio.run(asyncio.wait_for(read(), 120)) == expected and not llm.engine.has_unfinished


# Chat.

QUESTION = [{"role": "user", "content": "05.06."}]


def test_a_model_without_a_chat_template(llm):
    (output,) = llm.chat(QUESTION, GREEDY)
    assert output.outputs[0].finish_reason == "error" and "no chat template" in output.error
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat_token_ids(QUESTION)


def test_chat_is_generate_on_the_rendered_text(llm, monkeypatch):
    def render(self, messages, options):
        return "01." + "".join(message["content"] for message in check_messages(messages))

    monkeypatch.setattr(llm.chat_encoder, "_template", ChatTemplate("", {}))
    monkeypatch.setattr(ChatTemplate, "render", render)
    (expected,) = llm.generate([[1, 5, 6]], GREEDY)
    outputs = llm.chat([QUESTION, [{"role": "user", "content": 5}], QUESTION], [GREEDY] * 3)
    assert [output.prompt for output in outputs] == ["01.05.06.", None, "01.05.06."]
    assert outputs[0].outputs == outputs[2].outputs == expected.outputs
    assert "messages[0].content=5" in outputs[1].error
    with pytest.raises(RequestError, match="continue_final_message='yes': must be true or false"):
        llm.chat(QUESTION, GREEDY, continue_final_message="yes")
    with pytest.raises(TypeError, match="did you mean 'chat_template'"):
        llm.chat_token_ids(QUESTION, chat_templat="x")
    assert llm.chat(QUESTION, GREEDY)[0].prompt_token_ids == [1, 5, 6] == list(llm.chat_token_ids(QUESTION))


# More than tokens.


def test_what_requests_need_is_compiled_before_they_run(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        assert llm.runner.num_programs == 0
        expected = ids_of(llm.generate([[5, 6]], GREEDY))
        assert llm.runner.num_programs == 1
        with pytest.raises(RequestError, match="not compiled"):
            llm.engine.add_request("mine", [5, 6], dataclasses.replace(GREEDY, logprobs=1))
        params = [GREEDY, dataclasses.replace(GREEDY, logprobs=1, prompt_logprobs=0)]
        outputs = llm.generate([[5, 6]] * 2, params)
        assert ids_of(outputs) == expected * 2
        assert llm.runner.num_programs == 2
        entry = outputs[1].outputs[0].logprobs[0]
        (token_id,) = entry
        assert token_id == expected[0][0] and entry[token_id].decoded_token == f"{token_id:02d}."
        assert list(outputs[1].prompt_logprobs[1]) == [6]
        (silent,) = llm.generate([[5, 6]], dataclasses.replace(GREEDY, logprobs=1, detokenize=False))
        assert silent.outputs[0].logprobs[0][token_id].decoded_token is None
        assert llm.runner.num_programs == 2 and llm.runner.compilations_after_warmup == 0


def test_what_samples_take_is_compiled_before_they_run(model_dir):
    """To share their prompt's pages. Who asks for one sample need not wait for that."""
    with LLM(model_dir, **SMALL) as llm:
        (one,) = llm.generate([5, 6, 7], dataclasses.replace(GREEDY))
        assert not llm.runner._pages.prepared
        (many,) = llm.generate([5, 6, 7], dataclasses.replace(GREEDY, n=3))
        assert [sample.token_ids for sample in many.outputs] == [one.outputs[0].token_ids] * 3
        assert llm.runner._pages.prepared and llm.runner.compilations_after_warmup == 0


def test_only_what_is_named_is_compiled(model_dir, llm):
    prompts, params = [[5, 6], [7]], [GREEDY, SamplingParams(max_tokens=6, seed=1)]
    with LLM(model_dir, samplers=("extended",), **SMALL) as other:
        assert ids_of(other.generate(prompts, params)) == ids_of(llm.generate(prompts, params))
        other.prepare([*params, SamplingParams(top_k=3), SamplingParams(logprobs=1)])
        assert other.runner.num_programs == 1


def test_what_a_run_compiles_and_what_prepare_compiles(model_dir):
    """For one prompt its own two programs; in advance those of any number, too."""
    sizes = SMALL | {"decode_buckets": (1, 4), "token_buckets": (64, 96)}
    with LLM(model_dir, **sizes) as llm:
        expected = ids_of(llm.generate([5, 6], GREEDY))
        own = {(Bucket(4, 64), Sampler.FILTERED), (Bucket(1, 0), Sampler.GREEDY)}
        assert set(llm.runner._programs) == own
        llm.prepare([GREEDY])
        greedy = {(Bucket(4, 96), Sampler.FILTERED), (Bucket(4, 0), Sampler.GREEDY)}
        assert set(llm.runner._programs) == own | greedy
        assert [llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids] == expected
        assert llm.runner.num_programs == 4 and llm.runner.compilations_after_warmup == 0


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {96: 1}},
        {"allowed_token_ids": [5, 96]},
        {"logprob_token_ids": [96]},
        {"bad_words": ["01." * 9]},
    ],
)
def test_what_does_not_fit_the_model_ends_alone(llm, options):
    bad = dataclasses.replace(GREEDY, **options)
    refused, good = llm.generate([[5, 6]] * 2, [bad, GREEDY])
    (field,) = options
    assert refused.error.startswith(f"{field}=") and refused.outputs[0].finish_reason == "error"
    assert good.outputs[0].token_ids == ids_of(llm.generate([[5, 6]], GREEDY))[0]


def test_a_function_of_the_users(model_dir):
    """It is in every step: no token comes twice, and what it makes a NaN of ends alone."""

    def no_repeats(logits, state):
        logits = jax.numpy.where(state.in_prompt | (state.counts > 0), -jax.numpy.inf, logits)
        wanted = jax.numpy.arange(96) == 40 + state.request_idx[:, None]
        logits = jax.numpy.where((state.prompt_len == 4)[:, None] & wanted, 1e9, logits)
        return jax.numpy.where((state.prompt_len == 3)[:, None], jax.numpy.nan, logits)

    with LLM(model_dir, logits_fn=no_repeats, **SMALL) as llm:
        for params in (GREEDY, SamplingParams(max_tokens=40, seed=1, ignore_eos=True)):
            broken, good = llm.generate([[1, 2, 3], [5, 6]], params)
            ids = good.outputs[0].token_ids
            assert llm.runner.num_programs == 1
            assert len({5, 6, *ids}) == 2 + len(ids) == 2 + params.max_tokens
            assert "not finite at position 3" in broken.error and not broken.outputs[0].token_ids
        one = dataclasses.replace(GREEDY, max_tokens=1)
        for _ in range(2):  # each call counts its prompts
            assert ids_of(llm.generate([[1, 2, 3, 4]] * 6, one)) == [[40 + idx] for idx in range(6)]
        outputs = asyncio.run(llm.agenerate([[1, 2, 3, 4]] * 2, dataclasses.replace(one, n=2)))
        assert [[c.token_ids for c in output.outputs] for output in outputs] == [[[40]] * 2, [[41]] * 2]
        llm.engine.add_request("by hand", [1, 2, 3, 4], one, index=7)
        llm.engine.add_request("another", [1, 2, 3, 4], one, index=7, request_idx=50)
        found = {output.request_id: output.outputs[0].token_ids for output in drain(llm.engine).values()}
        assert found == {"by hand": [47], "another": [90]}
        with pytest.raises(RequestError, match=r"^request_idx=-1: must be an integer from 0"):
            llm.engine.add_request("bad", [1], one, request_idx=-1)


def test_a_function_that_cannot_be_compiled(model_dir):
    with pytest.raises(ConfigError, match=r"^logits_fn='<lambda>': cannot be traced for 8 draws: TypeError"):
        LLM(model_dir, logits_fn=lambda logits: logits, **SMALL)
    with pytest.raises(ConfigError, match=r"^logits_fn='<lambda>': must return float32\[8, 96\]"):
        LLM(model_dir, logits_fn=lambda logits, state: logits[0], **SMALL)
    with pytest.raises(ConfigError, match=r"^samplers="):
        LLM(model_dir, logits_fn=lambda logits, state: logits, samplers=("greedy",), **SMALL)


# Engines.


def test_modes_and_overlap_give_the_same_tokens(llm):
    prompts = [[idx, idx + 1] * (1 + idx) for idx in range(9)]
    expected = ids_of(llm.generate(prompts, GREEDY))
    default = llm.engine
    try:
        for mode in MODES:
            llm.engine = llm.new_engine(mode=mode)
            assert ids_of(llm.generate(prompts, GREEDY)) == expected
            assert llm.engine.summary.output_tokens == sum(map(len, expected))
        engine = llm.new_engine()
        llm.engine = Engine(engine.scheduler, llm.runner, engine.intake, overlap=False)
        assert ids_of(llm.generate(prompts, GREEDY)) == expected
    finally:
        llm.engine = default


def test_another_thread_may_prepare_but_not_generate_while_one_generates(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        prompts, params = [[idx, 6] for idx in range(12)], dataclasses.replace(GREEDY, max_tokens=20)
        expected, found = ids_of(llm.generate(prompts, params)), []
        step, entered, go = llm.engine.step, threading.Event(), threading.Event()

        def slow():
            entered.set()
            assert go.wait(60)
            return step()

        llm.engine.step = slow
        thread = threading.Thread(target=lambda: found.extend(ids_of(llm.generate(prompts, params))))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(JBatchError, match="generate has the engine, with 12 unfinished"):
            llm.generate([5, 6], GREEDY)
        with pytest.raises(JBatchError, match="another engine has 12 unfinished"):
            llm.new_engine().add_request("mine", [5, 6], GREEDY)
        go.set()
        llm.prepare([dataclasses.replace(GREEDY, logprobs=1)])
        thread.join(60)
        assert found == expected


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_an_interrupt_leaves_the_engine_clean(llm, monkeypatch, after):
    prompts = [[5, 6], [1, 2, 3], [9] * 30, [4], [8], [7]]
    expected = ids_of(llm.generate(prompts, GREEDY))
    step, steps = llm.engine.step, []

    def interrupted():
        if len(steps) == after:
            raise KeyboardInterrupt
        steps.append(step())
        return steps[-1]

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts, GREEDY)
    monkeypatch.undo()
    assert llm.engine.num_unfinished == 0 and llm.engine.scheduler.pool.num_used == 0
    assert ids_of(llm.generate(prompts, GREEDY)) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some come within a __del__
def test_a_hundred_signals_at_any_time(llm):
    """The next call works, and gives what it always gives."""
    prompts = [[5, 6], [1, 2, 3], [9] * 30, [4]]
    params = [dataclasses.replace(GREEDY, max_tokens=idx + 1) for idx in range(4)]
    expected, rng, interrupted = ids_of(llm.generate(prompts, params)), random.Random(0), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(100):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.012))
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    llm.generate(prompts, params)
            interrupted += time.monotonic() < end
            assert llm.generate(prompts[:1], params[:1])[0].outputs[0].token_ids == expected[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 90 and ids_of(llm.generate(prompts, params)) == expected
    assert llm.engine.scheduler.pool.num_used == 0 and not llm.engine.has_unfinished


def test_many_calls_share_the_engine(llm):
    """Each has what it has alone, and one that is cancelled takes no other along."""
    prompts = [[idx, 7] for idx in range(8)]
    alone = llm.generate(prompts, GREEDY)
    expected, texts = ids_of(alone), [output.outputs[0].text for output in alone]

    async def streamed(prompt):
        return "".join([delta.text async for delta in llm.astream([prompt], GREEDY)])

    async def main():
        tasks = [asyncio.create_task(llm.agenerate(prompt, GREEDY)) for prompt in prompts]
        tasks[3].cancel()
        streams = await asyncio.gather(*map(streamed, prompts))
        return streams, await asyncio.gather(*tasks, return_exceptions=True)

    streams, outputs = asyncio.run(asyncio.wait_for(main(), 120))
    assert streams == texts and isinstance(outputs.pop(3), asyncio.CancelledError)
    assert ids_of(output for (output,) in outputs) == expected[:3] + expected[4:]
    with pytest.raises(ValueError, match="2 sampling_params for 1 prompts"):
        llm.astream([[1]], [GREEDY] * 2)


def test_a_synchronous_call_says_how_many_can_share(llm):
    async def main():
        running = llm.astream([[5, 6]], GREEDY)
        await anext(running)
        for call in (llm.generate, lambda prompts: list(llm.stream(prompts))):
            with pytest.raises(JBatchError, match="calls of astream and agenerate share one, any number"):
                call([[1]])
        await running.aclose()
        return ids_of(llm.generate([[5, 6]], GREEDY))

    assert asyncio.run(main()) == ids_of(llm.generate([[5, 6]], GREEDY))


def test_a_device_that_fails_raises_and_leaves_the_engine_clean(llm, monkeypatch):
    expected = ids_of(llm.generate([[5, 6]], GREEDY))
    monkeypatch.setattr(llm.runner, "collect", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llm.generate([[5, 6], [7]], GREEDY)
    monkeypatch.undo()
    assert llm.engine.num_unfinished == 0 and llm.engine.scheduler.pool.num_used == 0
    assert ids_of(llm.generate([[5, 6]], GREEDY)) == expected


def test_priority_of_each_prompt(model_dir):
    with LLM(model_dir, policy="priority", mode="unbatched", **SMALL) as llm:
        outputs = llm.generate([[1], [2], [3]], GREEDY, priority=[2, 0, 1])
    ends = [output.metrics.finished_ts for output in outputs]
    assert ends[1] < ends[2] < ends[0]


# Construction.


def test_generate_leaves_nothing_in_flight(llm):
    llm.generate([[5, 6], [7]], GREEDY)
    assert not llm.engine.has_unfinished


def test_generate_refuses_to_mix_with_requests_added_by_hand(llm):
    llm.engine.add_request("mine", [5, 6], GREEDY)
    with pytest.raises(JBatchError, match="1 unfinished"):
        llm.generate([5, 6], GREEDY)
    llm.engine.abort("mine")
    assert len(llm.generate([5, 6], GREEDY)) == 1


def test_params_of_another_type(llm):
    with pytest.raises(TypeError, match="no SamplingParams"):
        llm.generate([[5, 6]], [{"temperature": 0}])


def test_the_token_budget_holds_where_the_buckets_are_larger(llm):
    plans = []
    llm.config = dataclasses.replace(llm.config, max_num_batched_tokens=16)
    engine = llm.new_engine()
    engine.add_request("long", [7] * 40, GREEDY)
    while engine.has_unfinished:
        plans.append(engine.step().plan)
    llm.config = dataclasses.replace(llm.config, max_num_batched_tokens=2048)
    assert [len(plan.chunks[0].token_ids) for plan in plans if plan and plan.chunks] == [16, 16, 8]


def test_a_policy_and_limits_of_the_users_own(llm):
    def most_last_token(request, now, view):
        return (-request.prompt_token_ids[-1],)

    engine = llm.new_engine(policy=most_last_token, limits=lambda view: StepLimits(64, 1))
    for last in (3, 9, 6):
        engine.add_request(str(last), [5, last], GREEDY)
    ended = []
    while engine.has_unfinished:
        ended += [output.request_id for output in engine.step().outputs]
    assert ended == ["9", "6", "3"]


@pytest.mark.parametrize("policy", ["shortest", 3, ""])
def test_a_policy_that_is_none_is_named(llm, policy):
    with pytest.raises(ConfigError, match=f"^policy={policy!r}: must be one of fcfs, "):
        llm.new_engine(policy=policy)


def test_a_runner_of_the_users_own_sees_every_step(llm):
    class Watching:
        """Passes everything on, and keeps what it saw."""

        def __init__(self, runner):
            self.runner, self.steps = runner, []

        def __getattr__(self, name):
            return getattr(self.runner, name)

        def submit(self, step):
            self.steps.append(step.bucket)
            return self.runner.submit(step)

    watching = Watching(llm.runner)
    engine = llm.new_engine(runner=watching)
    engine.add_request("watched", [5, 6], GREEDY)
    plans, outputs = [], []
    while engine.has_unfinished:
        step = engine.step()
        plans += [step.plan] if step.plan is not None else []
        outputs += step.outputs
    assert watching.steps == [plan.bucket for plan in plans]
    assert [outputs[0].outputs[0].token_ids] == ids_of(llm.generate([[5, 6]], GREEDY))
    assert llm.new_engine().runner is llm.runner


def test_without_a_tokenizer(tmp_path):
    write_checkpoint(tmp_path, seed=3)
    with LLM(tmp_path, **SMALL) as llm:
        assert llm.get_tokenizer() is None
        stop = SamplingParams(stop="a", max_tokens=3)
        by_ids, by_text, with_stop = llm.generate([[5, 6], "text", [5, 6]], [GREEDY, GREEDY, stop])
        assert len(by_ids.outputs[0].token_ids) == 6 and by_ids.outputs[0].text == ""
        for output in (by_text, with_stop):
            assert output.outputs[0].finish_reason == "error" and "no tokenizer" in output.error


def test_a_tokenizer_from_elsewhere(tmp_path, model_dir):
    write_checkpoint(tmp_path, seed=3)
    with LLM(tmp_path, tokenizer=model_dir, **SMALL) as llm:
        assert llm.generate("05.06.", GREEDY)[0].prompt_token_ids == [5, 6]


def test_close_frees_the_memory(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        leaves = jax.tree.leaves((llm.runner._params.leaves, llm.runner._state))
        assert not any(leaf.is_deleted() for leaf in leaves)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_dummy_weights_need_no_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    with LLM(tmp_path, load_format="dummy", **SMALL) as llm:
        assert len(ids_of(llm.generate([[1, 2]], GREEDY))[0]) == 6


@pytest.mark.parametrize("name, hint", [("max_num_seq", "max_num_seqs"), ("block_size", "page_size")])
def test_an_unknown_option_is_a_type_error_with_a_suggestion(model_dir, name, hint):
    with pytest.raises(TypeError, match=f"no option '{name}'.*{hint}"):
        LLM(model_dir, **{name: 4})


@pytest.mark.parametrize(
    "options, field",
    [
        ({"max_model_len": 257}, "max_model_len"),  # the model's context is 256
        ({"dtype": "int8"}, "dtype"),
        ({"page_size": 20}, "page_size"),
        ({"max_num_seqs": 8}, "decode_buckets"),  # the largest holds 4
        ({"num_pages": None, "kv_cache_memory_bytes": 100}, "kv_cache_memory_bytes"),
    ],
)
def test_options_that_do_not_fit_are_config_errors(model_dir, options, field):
    with pytest.raises(ConfigError) as error:
        LLM(model_dir, **{**SMALL, **options})
    assert error.value.field == field


@pytest.mark.parametrize(
    "config, field",
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_models_that_are_not_implemented_are_config_errors(tmp_path, config, field):
    (tmp_path / "config.json").write_text(json.dumps(tiny(**config)))
    with pytest.raises(ConfigError) as error:
        LLM(tmp_path, **SMALL)
    assert error.value.field == field


def test_directories_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        LLM(tmp_path, **SMALL)
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    with pytest.raises(WeightsError):
        LLM(tmp_path, **SMALL)


def test_a_tokenizer_that_is_not_read(model_dir, tmp_path):
    """One that is named must be there; without one, prompts of token ids work."""
    with pytest.raises(ConfigError, match=r"tokenizer=.*no such directory"):
        LLM(model_dir, tokenizer=tmp_path / "nowhere", **SMALL)
    with pytest.raises(ConfigError, match=r"tokenizer=.*has no tokenizer\.json"):
        LLM(model_dir, tokenizer=tmp_path, **SMALL)
    write_checkpoint(tmp_path, seed=3)
    (tmp_path / "tokenizer.model").touch()
    with pytest.warns(UserWarning, match=r"has tokenizer\.model but no tokenizer\.json: make one"):
        llm = LLM(tmp_path, **SMALL)
    with llm:
        text, ids = llm.generate(["05.", [5]], GREEDY)
    assert "no tokenizer" in text.error and ids.error is None


def test_absurd_parameters_are_request_errors():
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=-1)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        SamplingParams(max_token=5)


def test_wishes_of_each_prompt_reach_the_policy(model_dir):
    with LLM(model_dir, policy="deadline", mode="unbatched", **SMALL) as llm:
        outputs = llm.generate([[1], [2], [3]], GREEDY, deadline=[900.0, None, 500.0], user=["a", "b", "c"])
        ends = [output.metrics.finished_ts for output in outputs]
        assert ends[2] < ends[0] < ends[1]
        (refused,) = llm.generate([[1]], GREEDY, deadline=["soon"])
        assert "deadline='soon'" in refused.error


def test_metrics_count_what_was_generated(llm):
    def generated():
        return {metric.name: metric for metric in llm.get_metrics()}["jbatch:generation_tokens"].value

    before = generated()
    llm.generate([[1, 2, 3], [4, 5]], GREEDY, use_tqdm=False)
    assert generated() - before == 2 * 6
