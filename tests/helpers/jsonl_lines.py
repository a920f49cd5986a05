"""Lines of a JSONL job as a test writes them, and what is read from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jbatch.jobs.request_line import LineError, RequestLine, parse_line
from tests.helpers.jsonl_fuzz import batch_line

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def read(line: dict[str, Any] | bytes, **defaults: Any) -> RequestLine:
    return parse_line(line if isinstance(line, bytes) else json.dumps(line).encode(), defaults)


def refused(line: dict[str, Any] | bytes, **defaults: Any) -> LineError:
    """The error of a line that must have one."""
    with pytest.raises(LineError) as error:
        read(line, **defaults)
    return error.value


def completions(**body: Any) -> dict[str, Any]:
    return batch_line(COMPLETIONS, **{"prompt": "x", **body})


def chat(**body: Any) -> dict[str, Any]:
    return batch_line(CHAT, **{"messages": USER, **body})
