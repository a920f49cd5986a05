"""docs/jsonl.md says what the code does: its bounds are tried out, its examples are read."""

import json
import re
from pathlib import Path

import pytest

from jbatch.jobs.line_forms import IGNORED, REFUSED
from jbatch.jobs.request_line import LineError, parse_line
from jbatch.jobs.results import Failure, error_result, success_result
from jbatch.sampling_params import MAX_BAD_WORD_LEN, MAX_STOP_IDS, SamplingParams
from jbatch.text import template_worker
from jbatch.text.template import RENDER_LIMIT_S
from tests.helpers.jsonl_fuzz import CODES, batch_line, made_up_output

TEXT = (Path(__file__).parents[2] / "docs/jsonl.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`\w+`|a line) \| ([^|]+) \| (\S+) \| (\S+) \|$", TEXT, re.MULTILINE)
EXAMPLES = [json.loads(line) for line in re.findall(r"^\{.*\}$", TEXT, re.MULTILINE)]
BOOLEANS = [name for name, default in SamplingParams.__dataclass_fields__.items() if "bool" in default.type]
PROMPTS = ("prompt", "prompt_token_ids", "messages")


def bare(**fields):
    return json.dumps({**({} if fields.keys() & set(PROMPTS) else {"prompt": "x"}), **fields}).encode()


def chat(**fields):
    messages = [{"role": "user", "content": "x"}]
    return json.dumps(batch_line("/v1/chat/completions", messages=messages, **fields)).encode()


def completions(**fields):
    return json.dumps(batch_line("/v1/completions", **fields)).encode()


def contents(count):
    half = count // 2
    return [{"role": "user", "content": "x" * half}, {"role": "user", "content": "x" * (count - half)}]


MAKE = {  # (field, what is bounded): a line with this much of it
    ("a line", "bytes, its end included"): lambda n: b'{"prompt": "x"}'.ljust(n - 1) + b"\n",
    ("a line", "digits of an integer"): lambda n: b'{"prompt": "x", "metadata": %s}' % (b"1" * n),
    ("a line", "lists and objects inside each other"): lambda n: (
        b'{"prompt": "x", "metadata": ' + b"[" * (n - 1) + b"1" + b"]" * (n - 1) + b"}"
    ),
    ("messages", "messages"): lambda n: bare(messages=[{"role": "user", "content": ""}] * n),
    ("messages", "characters of all together"): lambda n: bare(messages=contents(n)),
    ("stop", "texts, or one alone"): lambda n: bare(stop=["x"] * n),
    ("bad_words", "texts"): lambda n: bare(bad_words=["x"] * n),
    ("logit_bias", "entries, from token id to number"): lambda n: bare(
        logit_bias={str(i): 1 for i in range(n)}
    ),
    ("prompt", "prompts in a list (completions)"): lambda n: completions(prompt=["x"] * n),
    ("messages", "parts of a content"): lambda n: bare(
        messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * n}]
    ),
    ("chat_template", "characters"): lambda n: chat(chat_template="x" * n),
    ("logit_bias", "each id, in digits"): lambda n: bare(logit_bias={str(n): 1}),
    ("logit_bias", "each number"): lambda value: bare(logit_bias={"5": value}),
    ("top_logprobs", "integer (chats)"): lambda value: chat(logprobs=True, top_logprobs=value),
    ("max_completion_tokens", "integer"): lambda value: chat(max_completion_tokens=value),
}  # fmt: skip


def line_with(field, what, value):
    make = MAKE.get((field, what))
    if make is not None:
        return make(value)
    if what.startswith("characters"):
        return bare(**{field: ["x" * value] if field == "bad_words" else "x" * value})
    if what == "ids":
        return bare(**{field: [1] * value})
    if what.startswith("each id"):
        return bare(**{field: [value]})
    assert re.match("integer|number", what), what
    return bare(**{field: value})


def refusal(raw):
    with pytest.raises(LineError) as error:
        parse_line(raw, {})
    return error.value


@pytest.mark.parametrize("field, what, low, high", ROWS)
def test_bounds(field, what, low, high):
    field, low, high = field.strip("`"), json.loads(low), json.loads(high)
    parse_line(line_with(field, what, high), {})
    if field == "a line":
        assert refusal(line_with(field, what, high + 1)).code in ("line_too_long", "invalid_json")
        return
    if what.endswith("not 0 itself"):
        assert refusal(line_with(field, what, 0)).field == field
        low = low or 5e-324
    parse_line(line_with(field, what, low), {})
    number = "number" in what.split(";")[0].split()[:2]
    step = 1e-6 if number else 1
    for value in (low - step, high + step):
        if what.endswith("`empty_prompt`") and value == 0:
            assert parse_line(line_with(field, what, 0), {}).prompts == ("",)  # the engine refuses it
            continue
        if value >= 0 or number or what.startswith(("integer", "each")):
            error = refusal(line_with(field, what, value))
            assert error.field.split("[")[0] == field and error.code == "invalid_request"


def test_every_sampling_parameter_has_its_bounds():
    fields = {field.strip("`") for field, *_ in ROWS}
    assert fields | set(BOOLEANS) >= set(SamplingParams.__dataclass_fields__)
    assert all(f"`{name}`" in TEXT for name in BOOLEANS)
    assert len(ROWS) == len(set(ROWS)) == 47


def test_what_is_ignored_and_refused():
    lists = re.findall(r"^(?:Ignored|Refused).*?: (`.*?`)\.", TEXT, re.MULTILINE)
    assert [re.findall("`([a-z_]+)`", names) for names in lists] == [list(IGNORED), list(REFUSED)]


def test_the_codes_of_lines():
    assert set(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \|$", TEXT, re.MULTILINE)) > CODES


def shape(value):
    """Which keys an object has, and those inside it."""
    if isinstance(value, dict):
        return {key: shape(inside) for key, inside in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def test_the_examples():
    lines, results = [], []
    for example in EXAMPLES:
        is_result = not example.keys().isdisjoint(("text", "error", "response"))
        (results if is_result else lines).append(example)
    assert len(lines) == 8 and len(results) == 6
    parsed = [parse_line(json.dumps(line).encode(), {}) for line in lines]
    by_id = {line.custom_id: line for line in parsed}
    for result in results:
        line = by_id.get(None if result["custom_id"] == "line-1" else result["custom_id"])
        error, form = result.get("error"), None if "id" in result else "bare"
        if result.get("response") and "error" in result["response"]["body"]:
            error, form = result["response"]["body"]["error"], "chat"
        if error:
            again = error_result(form, result["custom_id"], error["line"], Failure("", "", ""))
            assert error["code"] in CODES
        else:
            again = success_result(line, result["custom_id"], [made_up_output(line.params)])
        assert shape(result) == shape(again) and result.get("id") == again.get("id")


def test_bounds_of_templates_and_of_what_the_model_sets():
    """Those that are in the text, not in the table."""
    assert f"together with a line's are {MAX_STOP_IDS} at most" in TEXT
    assert f"at most {MAX_BAD_WORD_LEN} tokens" in TEXT
    assert f"at most {template_worker.MAX_TEXT} characters" in TEXT and template_worker.MEMORY == 2**30
    assert f"at most {RENDER_LIMIT_S:g} seconds and a gigabyte" in TEXT
