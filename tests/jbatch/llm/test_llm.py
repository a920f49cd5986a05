"""LLM on a tiny model directory: prompts and parameters in, results out."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import ConfigError, RequestError
from tests.helpers.small_llm import GREEDY, SMALL, ids_of

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


def test_priority_of_each_prompt(model_dir):
    with LLM(model_dir, policy="priority", mode="unbatched", **SMALL) as llm:
        outputs = llm.generate([[1], [2], [3]], GREEDY, priority=[2, 0, 1])
    ends = [output.metrics.finished_ts for output in outputs]
    assert ends[1] < ends[2] < ends[0]


def test_params_of_another_type(llm):
    with pytest.raises(TypeError, match="no SamplingParams"):
        llm.generate([[5, 6]], [{"temperature": 0}])


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


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_neither_pickled_nor_copied(llm, attempt):
    with pytest.raises(TypeError, match="make one in each process"):
        attempt(llm)


@pytest.mark.parametrize("model", [None, 5, b"demo", ""])
def test_a_model_is_a_path(model):
    with pytest.raises(ConfigError, match=r"^model=.*: must be a path: the directory of a model"):
        LLM(model)
