"""Prompts that are none."""

import pytest

from jbatch.engine.prompts import _content, list_requests
from jbatch.errors import RequestError
from jbatch.sampling_params import SamplingParams


@pytest.mark.parametrize("prompt", [{"role": "user", "content": "x"}, [{"role": "user", "content": "x"}]])
def test_messages_belong_to_chat(prompt):
    with pytest.raises(RequestError, match=r"prompt=.*: is of a conversation: give LLM.chat a list of"):
        _content(prompt)


@pytest.mark.parametrize(
    "params, todo",
    [
        (0.5, "sampling_params=0.5: must be SamplingParams, or a list of them"),
        ("greedy", "sampling_params='greedy': must be SamplingParams, or a list of them"),
        ({"temperature": 0}, "sampling_params={'temperature': 0}: give SamplingParams(**...) of it"),
    ],
)
def test_parameters_that_are_none(params, todo):
    with pytest.raises(TypeError) as error:
        list_requests(["x"], params, {}, iter("0"))
    assert str(error.value) == todo


def test_a_sampling_parameter_in_the_wrong_place():
    with pytest.raises(TypeError, match="'temperature': it belongs in SamplingParams"):
        list_requests(["x"], SamplingParams(), {"temperature": 0}, iter("0"))
