"""Results: OpenAI's batch form and the flat one, and bytes that depend on nothing but the answer."""

import json
import math

import pytest

from jbatch.jobs.request_line import RequestLine
from jbatch.jobs.results import Failure, dump, error_result, success_result
from jbatch.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from jbatch.sampling_params import SamplingParams

TOKENS = [
    {5: Logprob(-0.25, 1, "He", b"He"), 6: Logprob(-2.0, 2, "Ha", b"Ha")},
    {
        7: Logprob(-3.0, 4, "y", b"y"),
        8: Logprob(-0.5, 1, "!", b"!"),
        9: Logprob(-1.0, 2, "?", b"?"),
        3: Logprob(-9.0, None, "x", b"x"),
    },
]
FLAT = [
    {
        "5": {"logprob": -0.25, "rank": 1, "decoded_token": "He"},
        "6": {"logprob": -2.0, "rank": 2, "decoded_token": "Ha"},
    },
    {
        "7": {"logprob": -3.0, "rank": 4, "decoded_token": "y"},
        "8": {"logprob": -0.5, "rank": 1, "decoded_token": "!"},
        "9": {"logprob": -1.0, "rank": 2, "decoded_token": "?"},
        "3": {"logprob": -9.0, "rank": None, "decoded_token": "x"},
    },
]  # fmt: skip
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def line(form, **params):
    asked = SamplingParams(**params)
    return RequestLine(form, "a", ("x",), None, asked, "demo", prompt_logprobs=asked.prompt_logprobs)


def completion(index=0, logprobs=None):
    total = None if logprobs is None else -3.25
    offsets = None if logprobs is None else [0, 2]
    return CompletionOutput(
        index, "Hey", [5, 7], FinishReason.LENGTH, None, logprobs, total, text_offset=offsets
    )


def output(*completions, prompt_logprobs=None):
    """Of a line's only prompt."""
    return [RequestOutput("0", "x", [1, 2, 3], list(completions), prompt_logprobs=prompt_logprobs)]


def written(result):
    """As a reader gets it."""
    return json.loads(dump(result))


def test_a_bare_answer_is_flat():
    assert written(success_result(line("bare"), "a", output(completion()))) == {
        "custom_id": "a", "text": "Hey", "token_ids": [5, 7], "finish_reason": "length", "stop_reason": None,
        "usage": USAGE,
    }  # fmt: skip


def test_a_bare_answer_with_log_probabilities():
    result = success_result(
        line("bare"), "a", output(completion(logprobs=TOKENS), prompt_logprobs=[None, TOKENS[0], {}])
    )
    assert written(result) == {
        "custom_id": "a", "text": "Hey", "token_ids": [5, 7], "finish_reason": "length", "stop_reason": None,
        "logprobs": FLAT, "cumulative_logprob": -3.25, "prompt_logprobs": [None, FLAT[0], {}], "usage": USAGE,
    }  # fmt: skip


def test_several_bare_answers_are_a_list():
    result = written(success_result(line("bare", n=2), "a", output(completion(0), completion(1))))
    flat = {"text": "Hey", "token_ids": [5, 7], "finish_reason": "length", "stop_reason": None}
    assert result == {
        "custom_id": "a",
        "outputs": [{"index": 0, **flat}, {"index": 1, **flat}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize("form", ["bare", "completions", "chat"])
def test_a_sample_that_failed_beside_one_that_did_not(form):
    failed = CompletionOutput(1, "He", [5], FinishReason.ERROR, error="logits are not finite")
    result = written(success_result(line(form, n=2), "a", output(completion(0), failed)))
    assert result.get("error") is None
    if form != "bare":  # OpenAI's clients know no such finish_reason
        body = result["response"]["body"]
        assert [(choice["index"], choice["finish_reason"]) for choice in body["choices"]] == [(0, "length")]
        assert body["errors"] == [{"index": 1, "message": "logits are not finite"}]
        return
    answers = result["outputs"]
    assert [answer.get("error") for answer in answers] == [None, "logits are not finite"]
    assert [answer["finish_reason"] for answer in answers] == ["length", "error"]


def test_a_completions_answer():
    result = written(
        success_result(
            line("completions", n=2, prompt_logprobs=0),
            "a",
            output(completion(0), completion(1), prompt_logprobs=[None, None, None]),
        )
    )
    body = result["response"].pop("body")
    key = "ca978112ca1bbdcafac231b3"  # of sha256("a")
    assert result == {
        "id": f"batch_req_{key}", "custom_id": "a", "error": None,
        "response": {"status_code": 200, "request_id": f"req-{key}"},
    }  # fmt: skip
    choice = {"text": "Hey", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert body == {
        "id": f"cmpl-{key}", "object": "text_completion", "created": 0, "model": "demo",
        "choices": [{"index": 0, **choice}, {"index": 1, **choice}],
        "usage": USAGE | {"completion_tokens": 4, "total_tokens": 7},
        "prompt_logprobs": [None, None, None],
    }  # fmt: skip


def test_log_probabilities_of_completions():
    result = written(
        success_result(line("completions", logprobs=2), "a", output(completion(logprobs=TOKENS)))
    )
    assert result["response"]["body"]["choices"][0]["logprobs"] == {
        "tokens": ["He", "y"],
        "token_logprobs": [-0.25, -3.0],
        "top_logprobs": [{"He": -0.25, "Ha": -2.0}, {"!": -0.5, "?": -1.0, "y": -3.0, "x": -9.0}],
        "text_offset": [0, 2],
    }


def test_of_tokens_with_the_same_text_the_likeliest_has_it_and_none_is_lost():
    """ "<0x69>" and "i", for instance."""
    tokens = {5: Logprob(-4.0, 9, "i"), 6: Logprob(-1.0, 1, "i"), 7: Logprob(-2.0, 2, " i")}
    sample = CompletionOutput(0, "", [5], FinishReason.LENGTH, None, [tokens])
    choice = success_result(line("completions"), "a", output(sample))["response"]["body"]["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [{"i": -1.0, " i": -2.0, "token_id:5": -4.0}]
    assert choice["logprobs"]["token_logprobs"] == [-4.0]


@pytest.mark.parametrize(
    "params, tops", [({"logprobs": 0}, ["", ""]), ({"logprobs": 1}, ["He", "!"]),
                     ({"logprobs": 2, "logprob_token_ids": [3]}, ["He Ha", "! ? x"])]
)  # fmt: skip
def test_a_chat_answer(params, tops):
    result = written(success_result(line("chat", **params), "a", output(completion(logprobs=TOKENS))))
    body = result["response"]["body"]
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion" and body["id"] == "chatcmpl-ca978112ca1bbdcafac231b3"
    assert choice["message"] == {"role": "assistant", "content": "Hey"}
    content = choice["logprobs"]["content"]
    assert [" ".join(top["token"] for top in token.pop("top_logprobs")) for token in content] == tops
    assert content == [
        {"token": "He", "logprob": -0.25, "bytes": [72, 101]},
        {"token": "y", "logprob": -3.0, "bytes": [121]},
    ]


def test_tokens_without_a_text_of_their_own():
    tokens = {5: Logprob(-1.0, 1, "bytes:\\xe6", b"\xe6"), 6: Logprob(-1.5, 2, None)}
    sample = CompletionOutput(0, "", [5], FinishReason.LENGTH, None, [tokens])
    result = success_result(line("chat", logprobs=2), "a", output(sample))
    (content,) = result["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert (content["token"], content["bytes"]) == ("bytes:\\xe6", [0xE6])
    assert content["top_logprobs"][1]["token"] == "token_id:6" and not content["top_logprobs"][1]["bytes"]


@pytest.mark.parametrize("form", ["bare", "completions", "chat"])
def test_a_logprob_that_json_cannot_hold(form):
    tokens = {5: Logprob(-math.inf, 9, "a"), 6: Logprob(-1.0, 2, "b")}
    sample = CompletionOutput(0, "", [5], FinishReason.LENGTH, None, [tokens], -math.inf)
    text = dump(success_result(line(form, logprobs=20), "a", output(sample))).decode()
    assert "-9999.0" in text and "Infinity" not in text


@pytest.mark.parametrize("form", ["bare", "completions", "chat"])
def test_what_is_no_number_is_no_figure(form):
    """The answer of the line is then an error."""
    for tokens in ({5: Logprob(math.nan, 9, "a")}, {5: Logprob(-1.0, 1, "a"), 6: Logprob(math.nan, 2, "b")}):
        sample = CompletionOutput(0, "", [5], FinishReason.LENGTH, None, [tokens], -1.0)
        with pytest.raises(ValueError, match="not a number"):
            success_result(line(form, logprobs=20), "a", output(sample))


def test_a_model_that_was_not_named():
    unnamed = RequestLine("chat", "a", (), None, SamplingParams())
    assert success_result(unnamed, "a", output(completion()))["response"]["body"]["model"] == ""


def test_errors():
    error = {"code": "invalid_json", "message": "no", "line": 3}
    failure, key = Failure("invalid_json", "no"), "ca978112ca1bbdcafac231b3"
    named = {"id": f"batch_req_{key}", "custom_id": "a"}
    assert error_result("bare", "a", 3, failure) == {"custom_id": "a", "error": error}
    assert error_result(None, "a", 3, failure) == {**named, "response": None, "error": error}


@pytest.mark.parametrize("form", ["completions", "chat"])
@pytest.mark.parametrize(
    "code, status, kind",
    [
        ("invalid_request", 400, "invalid_request_error"),
        ("context_length", 400, "invalid_request_error"),
        ("generation_failed", 500, "server_error"),
        ("internal_error", 500, "server_error"),
    ],
)
def test_errors_of_openai_lines_are_responses(form, code, status, kind):
    """As in OpenAI's error files."""
    key = "ca978112ca1bbdcafac231b3"
    body = {"error": {"message": "no", "type": kind, "param": "n", "code": code, "line": 3}}
    assert error_result(form, "a", 3, Failure(code, "no", "n")) == {
        "id": f"batch_req_{key}",
        "custom_id": "a",
        "response": {"status_code": status, "request_id": f"req-{key}", "body": body},
        "error": None,
    }


def test_a_result_is_one_line_of_ascii():
    text = '\u2028\u2029\x85\r\n"\\ 日本 👩 \ud800 \0'
    raw = dump({"text": text})
    assert raw.isascii() and raw.endswith(b"}\n") and len(raw.splitlines()) == 1
    assert json.loads(raw) == {"text": text}
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"x": math.nan})


def test_the_same_answer_gives_the_same_bytes():
    results = [
        dump(success_result(line("chat"), custom_id, output(completion()))) for custom_id in ("a", "a", "b")
    ]
    assert results[0] == results[1] != results[2]
