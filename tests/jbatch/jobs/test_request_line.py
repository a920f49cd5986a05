"""Lines of a JSONL job: what each form becomes, and the error that names what is wrong."""

import json

import pytest

from jbatch.jobs.request_line import FORMS, ChatLine, RequestLine
from jbatch.sampling_params import SamplingParams
from jbatch.text.chat_options import ChatOptions
from tests.helpers.jsonl_fuzz import batch_line
from tests.helpers.jsonl_lines import USER, chat, completions, read, refused

# What a line becomes.


def test_a_bare_line():
    line = read({"prompt": "Hi", "temperature": 0, "max_tokens": 5, "stop": "."})
    params = SamplingParams(temperature=0, max_tokens=5, stop=".")
    assert line == RequestLine("bare", None, ("Hi",), None, params)
    assert read({"custom_id": "a", "prompt_token_ids": [1, 2]})[:4] == ("bare", "a", ((1, 2),), None)
    assert read({"messages": USER})[:4] == ("bare", None, (), ChatLine(tuple(USER)))


def test_a_completions_line():
    line = read(completions(model="demo", n=2, logprobs=3, logit_bias={"5": -100, "0": 1}))
    params = SamplingParams(n=2, logprobs=3, logit_bias={5: -100, 0: 1})
    assert line == RequestLine("completions", "a-1", ("x",), None, params, "demo")


@pytest.mark.parametrize(
    "prompt, read_as",
    [
        ("x", ("x",)),
        ([1, 2], ((1, 2),)),
        (["x"], ("x",)),
        ([[1, 2]], ((1, 2),)),
        (["a", "b", "a"], ("a", "b", "a")),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ([[1], "b"], ((1,), "b")),
    ],
)
def test_prompts_of_openai(prompt, read_as):
    line = read(completions(prompt=prompt))
    assert line.prompts == read_as and line.num_prompts == len(read_as)


def test_echo_asks_for_log_probabilities_of_the_prompt_too():
    assert read(completions(echo=True)) == RequestLine(
        "completions", "a-1", ("x",), None, SamplingParams(), echo=True
    )
    for own, given, of_prompt in ((None, 3, 3), (5, 3, 5), (1, 0, 1), (None, 0, 0)):
        line = read(completions(echo=True, logprobs=given, prompt_logprobs=own))
        assert line.params == SamplingParams(logprobs=given, prompt_logprobs=of_prompt)
        assert line.prompt_logprobs == own, "what is shown is what was asked for"
    assert not read(completions(echo=False)).echo


@pytest.mark.parametrize("url, form", FORMS.items())
def test_urls_of_openai_and_azure(url, form):
    prompt = {"prompt": "x"} if form == "completions" else {"messages": USER}
    assert read(batch_line(url, **prompt)).form == form


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("make", [lambda **f: {"messages": USER, **f}, chat])
def test_options_of_chats(make):
    asked = {"chat_template_kwargs": {"enable_thinking": False}, "tools": [TOOL], "chat_template": "{{ 1 }}"}
    asked |= {"add_generation_prompt": False, "continue_final_message": True}
    assert read(make(**asked)).chat == ChatLine(tuple(USER), ChatOptions(**asked))
    nothing = {"chat_template_kwargs": {}, "tools": [], "tool_choice": "none", "chat_template": None}
    assert read(make(**nothing)).chat == ChatLine(tuple(USER))
    error = refused(make(tools=[TOOL, {"type": "web_search"}]))
    assert (
        error.message == "tools[1].type='web_search': must be 'function'" and error.field == "tools[1].type"
    )


def test_options_of_chats_without_a_chat():
    assert read({"prompt": "x", "tools": [], "chat_template_kwargs": {}}).prompts == ("x",)
    for name, value in {"tools": [TOOL], "chat_template": "x", "add_generation_prompt": True}.items():
        error = refused({"prompt": "x", name: value})
        assert error.message == f"{name}={value!r}: takes messages" and error.code == "unsupported_field"


@pytest.mark.parametrize(
    "body, params",
    [
        ({}, {}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
    ],
)
def test_a_chat_line(body, params):
    line = read(chat(**body))
    assert line == RequestLine("chat", "a-1", (), ChatLine(tuple(USER)), SamplingParams(**params))


def test_parts_of_a_content_are_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts, "name": "Ann"}, {"role": "assistant", "content": ""}]
    assert read(chat(messages=messages)).chat.messages == (
        {"role": "user", "content": "one\ntwo", "name": "Ann"},
        {"role": "assistant", "content": ""},
    )


def test_a_line_overrides_the_defaults_and_null_does_not():
    defaults = {"temperature": 0, "max_tokens": 7}
    assert read({"prompt": "x", "temperature": 1, "max_tokens": None}, **defaults).params == SamplingParams(
        temperature=1, max_tokens=7
    )
    assert read(chat(max_completion_tokens=3), **defaults).params == SamplingParams(
        temperature=0, max_tokens=3
    )
    assert read(chat(logprobs=False), logprobs=2).params.logprobs is None


@pytest.mark.parametrize("make", [lambda **f: {"prompt": "x", **f}, completions, chat])
def test_what_is_harmless_is_ignored(make):
    plain = read(make()).params
    for name in ("model", "user", "metadata", "service_tier", "store"):
        for value in (None, True, 1.5, "x", [{}], {"a": [None]}):
            assert read(make(**{name: value})).params == plain
    for name, value in {"stream": False, "echo": False, "best_of": 1, "tools": [], "suffix": None}.items():
        assert read(make(**{name: value})).params == plain


@pytest.mark.parametrize(
    "name, value",
    [
        *(("stream", True), ("best_of", 2), ("best_of", True), ("suffix", "x")),
        *(("functions", [{}]), ("response_format", {"type": "json_object"}), ("stream", 0)),
    ],
)
@pytest.mark.parametrize("make", [lambda **f: {"prompt": "x", **f}, completions, chat])
def test_what_would_change_the_answer_is_refused_by_name(make, name, value):
    error = refused(make(**{name: value}))
    assert (error.code, error.field) == ("unsupported_field", name)
    todo = {"best_of": "there is no beam search", "response_format": "there are no structured outputs yet"}
    assert error.message.startswith(f"{name}={value!r}: {todo.get(name, 'is not supported: leave it out')}")


@pytest.mark.parametrize(
    "line, name",
    [(completions(tools=[{}]), "tools"), (chat(echo=True), "echo"), ({"prompt": "x", "echo": True}, "echo")],
)
def test_what_other_forms_have_is_refused_by_name(line, name):
    error = refused(line)
    assert (error.code, error.field) == ("unsupported_field", name)


def test_the_last_of_duplicate_keys_wins():
    assert read(b'{"prompt": "a", "prompt": "b", "n": "x", "n": 2}').params.n == 2
    assert read(b'{"prompt": "a", "prompt": "b"}').prompts == ("b",)
    assert refused(b'{"prompt": "a", "n": 2, "n": "x"}').field == "n"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \t\r\n"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf", b"  "])
def test_byte_order_mark_and_ends_of_line(begin, end):
    text = "\u2028 \u0085 日本 👩‍👩‍👧"
    assert read(begin + json.dumps({"prompt": text}, ensure_ascii=False).encode() + end).prompts == (text,)
    assert read(begin + json.dumps({"prompt": text}).encode() + end).prompts == (text,)


def test_nul_is_a_character():
    assert read(b'{"prompt": "a\\u0000b"}').prompts == ("a\0b",)


# What is wrong with a line.

ERRORS = {
    b"": "no valid JSON: EOF while parsing a value at byte 0",
    b'{"prompt":\n': "no valid JSON: EOF while parsing a value at byte 10",
    b'{"prompt": "x"': "no valid JSON: EOF while parsing an object at byte 14",
    b'{"prompt": "x"} {"prompt": "y"}': "no valid JSON: trailing characters at byte 17",
    b'{"n": NaN}': "no valid JSON: expected value at byte 7",
    b'{"n": -Infinity}': "no valid JSON: invalid number at byte 8",
    b'{"n": 01}': "no valid JSON: invalid number at byte 8",
    b'{"prompt": "\xff"}': "no valid JSON: invalid unicode code point at byte 13",
    b'{"prompt": "\xed\xa0\x80"}': "no valid JSON: invalid unicode code point at byte 13",
    b'{"prompt": "\\ud83d\\u0041"}': "no valid JSON: lone leading surrogate in hex escape",
    b"{'prompt': 'x'}": "no valid JSON: key must be a string at byte 2",
    b"\x00": "no valid JSON: expected value at byte 1",
    '{"prompt": "x"}'.encode("utf-16"): "no valid JSON: the line is UTF-16, and must be UTF-8",
    '{"prompt": "x"}'.encode("utf-16-be"): "no valid JSON: the line is UTF-16, and must be UTF-8",
    '{"prompt": "x"}'.encode("utf-32"): "no valid JSON: the line is UTF-32, and must be UTF-8",
    '{"prompt": "x"}'.encode("utf-32-le"): "no valid JSON: the line is UTF-32, and must be UTF-8",
    b"[1]": "must be a JSON object, and is of type list",
    b"null": "must be a JSON object, and is of type NoneType",
    b'{"prompt": "x", "temperature": 1e999}': "temperature=inf: must be a number",
    b'{"prompt": "x", "n": 1.0}': "n=1.0: must be an integer from 1 to 128",
    b'{"prompt": "x", "n": true}': "n=True: must be an integer from 1 to 128",
    b'{"prompt": "x", "n": "1"}': "n='1': must be an integer from 1 to 128",
    b"{}": "prompt=None: a line has one of prompt, prompt_token_ids and messages",
    b'{"prompt": null}': "prompt=None: a line has one of",
    b'{"prompt": "x", "messages": [{"role": "user", "content": ""}]}': (
        "prompt='prompt and messages': a line has one of prompt, "
    ),
    b'{"prompt": ["x"]}': "prompt=['x']: must be a string",
    b'{"prompt_token_ids": []}': "prompt_token_ids=[]: must have at least 1",
    b'{"prompt_token_ids": [1, 2.0]}': "prompt_token_ids[1]=2.0: must be an",
    b'{"prompt_token_ids": [true]}': "prompt_token_ids[0]=True: must be an",
    b'{"custom_id": 7, "prompt": "x"}': "custom_id=7: must be a string",
    b'{"custom_id": "", "prompt": "x"}': "custom_id='': must have at least 1 char",
    b'{"prompt": "x", "temprature": 1}': (
        "temprature=1: a line has no option 'temprature'; did you mean 'temperature'?"
    ),
    b'{"prompt": "x", "a\\nb": 1}': r"a\nb=1: a line has no option 'a\nb'; known: add_",
    b'{"prompt": "x", "max_completion_tokens": 2}': (
        "max_completion_tokens=2: a line has no option 'max_completion_tokens'; did you mean 'max_tokens'?"
    ),
    b'{"prompt": "x", "answer": "3"}': "answer='3': a line has no option 'answer'; known: add_generation",
    b'{"prompt": "x", "logit_bias": {"1.0": 1}}': (
        "logit_bias='1.0': a key must be a token id"
    ),
    b'{"prompt": "x", "logit_bias": {"01": 1}}': "logit_bias='01': a key must be a token id",
    b'{"prompt": "x", "logit_bias": {"%s": 1}}' % (b"9" * 5000): "logit_bias='9999999999",
    b'{"prompt": "x", "logit_bias": {"5": "1"}}': "logit_bias='1': must be a number",
}  # fmt: skip
OPENAI_ERRORS = [
    (completions(prompt=None), "prompt=None: must be given"),
    (completions(prompt=5), "prompt=5: must be a string"),
    (completions(prompt=[]), "prompt=[]: must have at least 1 item"),
    (completions(prompt=[1, -1]), "prompt[1]=-1: must be greater than or equal to 0"),
    (completions(prompt=["a", 1]), "prompt[1]=1: must be a string"),
    (completions(prompt=[1, "a"]), "prompt[1]='a': must be an integer"),
    (completions(prompt=[[1], []]), "prompt[1]=[]: must have at least 1 item"),
    (completions(prompt=[[1], [2, -1]]), "prompt[1][1]=-1: must be greater than or equal to 0"),
    (completions(prompt=["a"] * 2049), "prompt=['a', 'a'"),
    (completions(echo=1), "echo=1: must be a boolean"),
    (completions(truncate_prompt_tokens=0), "truncate_prompt_tokens=0: must be -1, or at least 1"),
    (
        completions(messages=1),
        "messages=1: a completions body has no option 'messages'; did you mean 'prompt'?",
    ),
    (
        completions(max_completion_tokens=1),
        "max_completion_tokens=1: a completions body has no option 'max_completion_tokens'; did you mean 'm",
    ),
    (completions(detokenize=True), "detokenize=True: a completions body has no option"),
    (completions(logprobs=True), "logprobs=True: must be an integer from 0 to 20"),
    (chat(prompt="x"), "prompt='x': a chat body has no option 'prompt'; did you mean 'messages'?"),
    (chat(modle="x"), "modle='x': a chat body has no option 'modle'; known: add_"),
    (
        chat(continue_final_message=True, add_generation_prompt=True),
        "continue_final_message=True: not with add_generation_prompt: ",
    ),
    ({**chat(), "tools": []}, "tools=[]: belongs in body"),
    (chat(logprobs=2), "logprobs=2: must be a boolean"),
    (chat(top_logprobs=2), "top_logprobs=2: takes logprobs: true"),
    (
        chat(logprobs=True, top_logprobs=21),
        "top_logprobs=21: must be an integer from 0 to 20",
    ),
    (
        chat(max_completion_tokens="5"),
        "max_completion_tokens='5': must be an integer from 0 to",
    ),
    (
        chat(max_completion_tokens=5, max_tokens=6),
        "max_completion_tokens=5: max_tokens says 6",
    ),
    ({**chat(), "n": 2}, "n=2: belongs in body"),
    ({**chat(), "mthod": "POST"}, "mthod='POST': a batch line has no option 'mthod'; did"),
    ({**chat(), "method": "GET"}, "method='GET': must be 'POST'"),
    ({**chat(), "url": "/v1/embeddings"}, "url='/v1/embeddings': must be '/v1/completions"),
    ({**chat(), "url": None}, "url=None: must be given"),
    ({**chat(), "body": []}, "body=[]: must be a dictionary"),
    ({**chat(), "custom_id": None}, "custom_id=None: must be given"),
]  # fmt: skip


@pytest.mark.parametrize(
    "line, expected", [*ERRORS.items(), *((json.dumps(line).encode(), text) for line, text in OPENAI_ERRORS)]
)
def test_the_error_names_field_value_and_limit(line, expected):
    error = refused(line)
    assert error.message.startswith(expected) and str(error) == error.message
    field, equals, _ = expected.partition("=")
    assert error.field == (field if equals else None)
    unknown = "has no option" in expected or "belongs in" in expected
    code = "invalid_json" if "JSON:" in expected else "unknown_field" if unknown else "invalid_request"
    assert error.code == code


@pytest.mark.parametrize(
    "messages, expected, code",
    [
        ([*USER, {}], "messages[1].role=None: must be given", "invalid_request"),
        (
            [{**USER[0], "tools": [1]}],
            "messages[0].tools=[1]: a message has no option 'tools'",
            "unknown_field",
        ),
        (USER * 2049, "messages=[{'role': ", "invalid_request"),
        (
            [{**USER[0], "content": [{"type": "text", "text": ""}] * 2049}],
            "messages[0].content=[{'type': ",
            "invalid_request",
        ),
    ],
)
@pytest.mark.parametrize("make", [lambda messages: {"messages": messages}, lambda m: chat(messages=m)])
def test_messages_are_refused_as_those_of_llm_chat(make, messages, expected, code):
    """All that is wrong with messages is in tests/jbatch/text/test_messages.py; here are bounds, too."""
    error = refused(make(messages))
    assert error.message.startswith(expected)
    assert (error.code, error.field) == (code, expected.partition("=")[0])


def test_an_error_of_the_defaults_with_the_line():
    assert refused({"prompt": "x", "min_tokens": 6}, max_tokens=5).field == "min_tokens"
    assert refused(chat(min_tokens=6), max_tokens=5).field == "min_tokens"


@pytest.mark.parametrize(
    "line, custom_id, form",
    [
        (b'{"custom_id": "a", "prompt": 1}', "a", "bare"),
        (b'{"prompt": 1}', None, "bare"),
        (b'{"prompt": 1, "custom_id": ["a"]}', None, "bare"),
        (json.dumps(chat(n=0)).encode(), "a-1", "chat"),
        (json.dumps({**completions(), "url": "/v2"}).encode(), "a-1", None),
        (b'{"custom_id": "a\\"\\u00e9", "prompt": ', 'a"é', None),
        (b'\xef\xbb\xbf {"custom_id" : "a", "prompt": "\\ud800"}', "a", None),
        (b'{"custom_id": "\\ud800", "prompt": "x"}', None, None),
        (b'{"custom_id": "%s", ' % (b"x" * 513), None, None),
        (b'{"prompt": "x", "custom_id": "a", ', None, None),  # it could be a part of something else
        (b'{"custom_id": "a', None, None),
    ],
)
def test_an_error_has_the_id_and_the_form_where_they_can_be_read(line, custom_id, form):
    error = refused(line)
    assert (error.custom_id, error.form) == (custom_id, form)


def test_what_a_policy_goes_by():
    fields = {"priority": -1, "deadline": 9, "predicted_len": 3, "user": "me", "tpot_ms": 20.5}
    assert read({"prompt": "x", **fields}).wishes == fields
    body = {"messages": [{"role": "user", "content": "x"}], "user": 3, "priority": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert read(line).wishes == {"priority": 2}  # 3 is nobody
    assert not read({"prompt": "x"}).wishes
