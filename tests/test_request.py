"""Parameters of a request: what is accepted, and the error that names what is not."""

import dataclasses
import math

import pytest

from jbatch.errors import RequestError
from jbatch.outputs import FinishReason
from jbatch.request import Sequence
from jbatch.sampling_params import SamplingParams
from tests.helpers.schedules import request

VALUES = {
    "null": None,
    "-1": -1,
    "0": 0,
    "1": 1,
    "1.5": 1.5,
    "2**31": 2**31,
    "2**63": 2**63,
    "1e308": 1e308,
    "10**400": 10**400,  # math.isfinite raises OverflowError
    "10**5000": 10**5000,  # repr raises ValueError
    "nan": math.nan,
    "-inf": -math.inf,
    "text": "1",
    "true": True,
    "[]": [],
    "{}": {},
}
ACCEPTED = {
    "n": "1",
    "temperature": "0 1 1.5",
    "top_p": "1",
    "top_k": "-1 0 1",
    "min_p": "0 1",
    "seed": "null 0 1 2**31",
    "stop": "null text []",
    "stop_token_ids": "null []",
    "ignore_eos": "true",
    "max_tokens": "null 0 1",
    "min_tokens": "0 1",
    "detokenize": "true",
    "skip_special_tokens": "true",
    "include_stop_str_in_output": "true",
}
EDGES = [  # the last value accepted, the first refused
    ("temperature", 100, 100.1),
    ("temperature", 0.0, -1e-9),
    ("top_p", 1e-9, 0),
    ("top_p", 1, 1.001),
    ("top_k", 2**31 - 1, 2**31),
    ("top_k", -1, -2),
    ("min_p", 1.0, 1.001),
    ("seed", 2**32 - 1, 2**32),
    ("max_tokens", 2**31 - 1, 2**31),
    ("min_tokens", 2**31 - 1, 2**31),
    ("stop", ["x"] * 16, ["x"] * 17),
    ("stop", "x" * 256, "x" * 257),
    ("stop", "x", ""),
    ("stop", ["x", "y"], ["x", None]),
    ("stop_token_ids", [0] * 16, [0] * 17),
    ("stop_token_ids", [2**31 - 1], [2**31]),
    ("stop_token_ids", [0], [-1]),
    ("stop_token_ids", (3, 4), [3, True]),
    ("stop_token_ids", (3, 4), "34"),
]


def test_the_table_names_every_parameter():
    assert list(ACCEPTED) == list(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", ACCEPTED)
def test_any_value_is_accepted_or_refused_by_name(field, value):
    if value in ACCEPTED[field].split():
        SamplingParams(**{field: VALUES[value]})
        return
    with pytest.raises(RequestError, match=f"^{field}=") as error:
        SamplingParams(**{field: VALUES[value]})
    assert error.value.field == field and error.value.code == "invalid_request"
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("field, accepted, refused", EDGES)
def test_edges(field, accepted, refused):
    SamplingParams(**{field: accepted})
    with pytest.raises(RequestError, match=f"^{field}="):
        SamplingParams(**{field: refused})


def test_the_message_states_field_value_and_limit():
    with pytest.raises(RequestError, match=r"^temperature=101: must be a number from 0 to 100$"):
        SamplingParams(temperature=101)
    with pytest.raises(RequestError, match=r"^min_tokens=6: must be an integer from 0 to 5$"):
        SamplingParams(min_tokens=6, max_tokens=5)


def test_unknown_options_suggest_the_known_one():
    with pytest.raises(TypeError, match="no option 'max_new_tokens'; did you mean 'max_tokens'"):
        SamplingParams(max_new_tokens=5)
    with pytest.raises(TypeError, match="no option 'temprature'; did you mean 'temperature'"):
        SamplingParams(temprature=0.5)
    with pytest.raises(TypeError, match="no option 'zzz'; known: detokenize, ignore_eos, "):
        SamplingParams(zzz=1)


def test_stop_becomes_a_tuple():
    assert SamplingParams().stop == SamplingParams(stop=[]).stop == ()
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1]).stop_token_ids == (1,)


def test_params_can_be_changed_with_dataclasses_replace():
    full = SamplingParams(stop="a", stop_token_ids=[1], allowed_token_ids=[2], logit_bias={3: 1.0})
    for params in (SamplingParams(), full):
        assert dataclasses.replace(params) == params and dataclasses.replace(params, n=2).n == 2
    with pytest.raises(RequestError, match="must name at least one"):
        dataclasses.replace(full, allowed_token_ids=[])


@pytest.mark.parametrize("temperature, greedy", [(0, True), (9e-6, True), (1e-5, False), (1, False)])
def test_a_tiny_temperature_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).greedy is greedy


def test_reasons_print_as_their_value():
    assert [f"{reason}" for reason in FinishReason] == ["stop", "length", "abort", "error"]


def test_a_sequence_counts():
    sequence = Sequence(seq_id=0, request=request([5, 6, 7], 4), token_ids=[5, 6, 7, 8], num_planned=4)
    assert (sequence.num_prompt, sequence.num_known, sequence.max_len) == (3, 4, 7)
    assert sequence.output_token_ids == [8]
    assert not sequence.running and not sequence.finished
    sequence.row, sequence.finish_reason = 0, FinishReason.LENGTH
    assert sequence.running and sequence.finished
