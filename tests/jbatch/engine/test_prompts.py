"""Prompts that are none."""

import pytest

from jbatch.engine.prompts import _content
from jbatch.errors import RequestError


@pytest.mark.parametrize("prompt", [{"role": "user", "content": "x"}, [{"role": "user", "content": "x"}]])
def test_messages_belong_to_chat(prompt):
    with pytest.raises(RequestError, match=r"prompt=.*: is of a conversation: give LLM.chat a list of"):
        _content(prompt)
