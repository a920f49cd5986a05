"""Rows as requests."""

import dataclasses

import pytest

from jbatch.errors import RequestError
from jbatch.integrations.ray_data.rows import Answer, answer_of, failed, index_of, request_of
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput
from jbatch.sampling_params import SamplingParams


def test_what_a_row_asks_for():
    row = {"prompt": "a", "messages": None, "sampling_params": {"temperature": 0, "top_k": None}, "id": 7}
    request = request_of(row, {"top_p": 0.5}, "id")
    assert (request.prompt, request.messages, request.seed_index) == ("a", None, 7)
    assert request.params == SamplingParams(temperature=0, top_p=0.5)
    request = request_of({"tokenized_prompt": (1, 2), "prompt": "a"}, {}, None)
    assert request.prompt == [1, 2], "as in ray.data.llm, token ids come before a text"
    message = {"role": "user", "content": "a", "name": None}
    request = request_of({"messages": [message]}, {}, None)
    assert (request.prompt, request.messages) == (None, [{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "row, message",
    [
        ({}, "prompt=None: a row needs one of messages, prompt, tokenized_prompt"),
        ({"prompt": None, "messages": None}, "prompt=None: a row needs one of"),
        ({"prompt": "a", "sampling_params": {"temperature": -1}}, "temperature=-1: must be"),
        ({"prompt": "a", "sampling_params": {"n": 2}}, "n=2: a row has one answer"),
        ({"prompt": "a", "sampling_params": {"max_new_tokens": 2}}, "did you mean 'max_tokens'"),
        ({"prompt": "a", "id": None}, "id=None: the id column of a row must not be empty"),
    ],
)
def test_what_is_refused(row, message):
    with pytest.raises((RequestError, TypeError)) as error:
        request_of(row, {}, "id" if "id" in row else None)
    assert message in str(error.value)
    assert failed(error.value) == Answer(error=f"{type(error.value).__name__}: {error.value}")


def test_an_index_depends_on_the_id_alone():
    assert [index_of(name) for name in (0, 12, 2**63 - 1)] == [0, 12, 2**63 - 1]
    hashed = [index_of(name) for name in ("12", "a", -1, 2**63, 1.5, True, b"a")]
    assert len(set(hashed)) == len(hashed) and min(hashed) >= 2**63
    assert index_of("row 1") == 27650847653702644818, "other processes and versions must draw the same"


def test_rows_without_ids_draw_by_what_they_ask_for():
    def index(**row):
        return request_of(row, {}, None).seed_index

    assert index(prompt="a", place=1) == index(prompt="a", place=2)
    assert index(prompt="a") != index(prompt="b")
    assert index(prompt="a") != index(prompt="a", sampling_params={"temperature": 2})


def test_answers():
    sample = CompletionOutput(0, "ab", [3, 4], FinishReason.STOP)
    output = RequestOutput("0", "x", [5], [sample], None)
    assert answer_of(output, 0.5) == Answer("ab", [3, 4], 1, 2, "stop", 0.5)
    output = dataclasses.replace(output, error="too long")
    assert answer_of(output, 0.5) == Answer(num_input_tokens=1, error="too long")
