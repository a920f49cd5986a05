"""The forms of a line: what is large, any value in any field, and that no field is forgotten."""

import json
import subprocess
import sys

import pytest

from jbatch.errors import RequestError
from jbatch.jobs import line_forms
from jbatch.jobs.request_line import LineError
from jbatch.sampling_params import SamplingParams
from tests.helpers.jsonl_fuzz import FIELDS, VALUES, check_line
from tests.helpers.jsonl_lines import chat, completions, read, refused

# What is large.


@pytest.mark.parametrize(
    "line, code",
    [
        (b"[" * 100_000, "invalid_json"),
        (b'{"prompt": "x", "metadata": ' + b'{"a":' * 100_000, "invalid_json"),
        (b'{"prompt": "x", "metadata": ' + b"[" * 1000 + b"]" * 1000 + b"}", "invalid_json"),
        (b'{"prompt": "x", "n": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b'{"prompt": "x", "n": ' + b"1" * 4000 + b"}", "invalid_request"),
        (b'{"prompt": "x", "' + b"k" * 2**20 + b'": 1}', "unknown_field"),
        (b'{"prompt": "x", "temperature": "' + b"k" * 2**20 + b'"}', "invalid_request"),
        (b'{"prompt": "x", ' + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}", "unknown_field"),
        (b'{"prompt_token_ids": [' + b"{}," * 50_000 + b"1]}", "invalid_request"),
        (b'{"messages": [' + b"{}," * 50_000 + b"1]}", "invalid_request"),
        (b'{"prompt": "' + b"x" * 100_000_000 + b'"}', "line_too_long"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_large_lines(line, code):
    error = check_line(line)
    assert isinstance(error, LineError) and error.code == code


def test_nesting_that_is_read():
    deep = b"[" * 200 + b"]" * 200
    assert read(b'{"prompt": "x", "metadata": ' + deep + b"}").prompts == ("x",)


# Any value in any field.


@pytest.mark.parametrize(
    "line", [{"prompt": "x"}, completions(), chat()], ids=["bare", "completions", "chat"]
)
def test_any_value_in_any_field(line):
    accepted = 0
    for field in FIELDS:
        for value in VALUES:
            changed = {**line, field: value}
            if "body" in line and field not in ("custom_id", "method", "url", "body"):
                changed = {**line, "body": {**line["body"], field: value}}
            raw = json.dumps(changed).encode("utf-8", "surrogatepass")
            accepted += not isinstance(check_line(raw), LineError)
    assert len(FIELDS) * len(VALUES) * 0.1 < accepted < len(FIELDS) * len(VALUES) * 0.5


def test_a_line_may_set_whatever_sampling_params_has():
    """So that a new one is not forgotten here: it is accepted, and refused by its own error."""
    for field in SamplingParams.__dataclass_fields__:
        with pytest.raises(RequestError) as error:
            SamplingParams(**{field: {"no": object}})
        assert error.value.field == refused({"prompt": "x", field: {"no": "object"}}).field == field


def test_without_pydantic_the_error_says_what_to_install():
    script = """
import sys
sys.modules["pydantic"] = None
from jbatch.errors import JBatchError
try:
    import jbatch.jobs.request_line
except JBatchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("JSONL jobs need pydantic (") and "pip install pydantic" in done.stdout


def test_the_forms_are_strict():
    for form in (line_forms.Envelope, line_forms.Bare, line_forms.Completions, line_forms.Chat):
        config = form.model_config
        assert (config["strict"], config["extra"], config["allow_inf_nan"]) == (True, "forbid", False)
