"""Names of options elsewhere: the name here that is meant, or what to do instead."""

import dataclasses
import inspect

import pytest

from bench.cli import batching, latency
from jbatch.config import EngineConfig
from jbatch.errors import check_option_names
from jbatch.jobs.line_forms import Bare, Chat, Completions
from jbatch.jobs.options import JobOptions
from jbatch.llm import LLM
from jbatch.names_elsewhere import (
    _ALSO_CALLED,
    _ATTRIBUTES,
    _INSTEAD,
    attribute_instead_of,
    instead_of,
    nearest_name,
)
from jbatch.sampling_params import SamplingParams

REQUEST = tuple(SamplingParams.__dataclass_fields__)
ENGINE = tuple(EngineConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "known", "nearest"),
    [
        # of a request
        ("max_completion_tokens", REQUEST, "max_tokens"),
        ("max_new_tokens", REQUEST, "max_tokens"),
        ("max-tokens", REQUEST, "max_tokens"),
        ("maxTokens", REQUEST, "max_tokens"),
        ("max_length", REQUEST, "max_tokens"),
        ("temprature", REQUEST, "temperature"),
        ("top_logprobs", REQUEST, "logprobs"),
        ("eos_token_id", REQUEST, "stop_token_ids"),
        ("repeat_penalty", REQUEST, "repetition_penalty"),
        ("num_return_sequences", REQUEST, "n"),
        # of an engine
        ("max_length", ENGINE, "max_model_len"),
        ("block_size", ENGINE, "page_size"),
        ("mem_fraction_static", ENGINE, "gpu_memory_utilization"),
        ("scheduling_policy", ENGINE, "policy"),
        ("max_num_seq", ENGINE, "max_num_seqs"),
        # nothing of the kind: names that only look alike
        ("best_of", REQUEST, None),
        ("length_penalty", REQUEST, None),
        ("prompt", REQUEST, None),
        ("answer", REQUEST, None),
        ("tp_size", ENGINE, "tensor_parallel_size"),
        ("quantization", ENGINE, None),
        ("trust_remote_code", ENGINE, None),
        ("tokenizer_mode", ENGINE, None),
        ("", ENGINE, None),
    ],
)
def test_the_name_that_is_meant(name, known, nearest):
    assert nearest_name(name, known) == nearest


def test_without_a_near_name_all_are_listed():
    with pytest.raises(TypeError, match="LLM has no option 'answer'; known: admission, attention_backend, "):
        check_option_names(["answer"], ENGINE, "LLM")


def test_other_names_stand_for_fields_that_exist():
    """And none is a field itself, of the same kind of thing, which would then be told to be another."""
    lines = {field for form in (Bare, Chat, Completions) for field in form.model_fields}
    jobs = {field.name for field in dataclasses.fields(JobOptions)}
    bench = {name for command in (batching, latency) for name in inspect.signature(command).parameters}
    assert not _ALSO_CALLED.keys() - lines - jobs - bench - set(ENGINE)
    others = {name for names in _ALSO_CALLED.values() for name in names.split()}
    assert not others & {*REQUEST, *ENGINE}


@pytest.mark.parametrize("name", ["pipeline_parallel_size", "distributed_executor_backend", "nnodes"])
def test_one_model_on_more_than_one_host(name):
    with pytest.raises(TypeError) as error:
        check_option_names([name], EngineConfig.__dataclass_fields__, "LLM")
    assert str(error.value).startswith(f"LLM has no option '{name}': one model runs within one host.")
    assert "did you mean" not in str(error.value) and "--ray" in str(error.value)


@pytest.mark.parametrize(
    "name, todo",
    [
        ("quantization", "nothing is quantised"),
        ("enforce_eager", "compiled at the start: leave it out"),
        ("trust-remote-code", "leave it out"),
        ("best_of", "draw n samples"),
        ("do_sample", "temperature=0 takes the likeliest token"),
        ("logits_processors", "LLM(model, logits_fn=f)"),
        ("enable_sequence_parallel", "tensor_parallel_size spreads a model"),
    ],
)
def test_what_there_is_not_says_what_to_do(name, todo):
    with pytest.raises(TypeError) as error:
        check_option_names([name], [*ENGINE, *REQUEST], "LLM")
    assert todo in str(error.value) and "did you mean" not in str(error.value)


def test_a_name_has_one_answer():
    names = [name for names in (*_INSTEAD.values(), *_ALSO_CALLED.values()) for name in names.split()]
    both = {name for names in _INSTEAD.values() for name in names.split()}
    assert all(names.count(name) == 1 for name in both)


def test_nothing_is_refused_that_there_is():
    for name in (*EngineConfig.__dataclass_fields__, *SamplingParams.__dataclass_fields__):
        assert instead_of(name) is None


@pytest.mark.parametrize(
    "name, todo",
    [
        ("beam_search", "there is no beam search: draw n samples"),
        ("embed", "models only write texts here"),
        ("wake_up", "llm.close() frees the device's memory"),
        ("collective_rpc", "llm.update_weights(tree) changes them"),
        ("llm_engine", "it is llm.engine"),
    ],
)
def test_what_an_llm_has_elsewhere(name, todo):
    assert todo in attribute_instead_of(name)


def test_no_attribute_stands_for_one_that_there_is():
    names = [name for names in _ATTRIBUTES.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert not {*names} & {*dir(LLM), "engine", "runner", "config", "model_config", "chat_encoder"}
