"""Names of options elsewhere: the name here that is meant, or what to do instead."""

import dataclasses

import pytest

from jbatch.config import EngineConfig
from jbatch.errors import check_option_names
from jbatch.jobs.line_forms import Bare, Chat, Completions
from jbatch.jobs.options import JobOptions
from jbatch.names_elsewhere import _ALSO_CALLED, _INSTEAD, instead_of, nearest_name
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
    assert not _ALSO_CALLED.keys() - lines - jobs - set(ENGINE)
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
