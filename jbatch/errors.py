"""Errors a caller can act on. Each message names the field, the value and the limit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MAX_NAME_CHARS = 64  # of a field, in an error
MIN_LIKENESS = 0.7  # of a name to the one that it may have been meant for (difflib's ratio)
MEANT = {  # what others call it: the first of these that there is was meant
    "max_completion_tokens": ("max_tokens",),
    "max_new_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens",),
    "max_length": ("max_tokens",),
    "num_return_sequences": ("n",),
    "stop_sequences": ("stop",),
    "top_logprobs": ("logprobs",),
    "prompt": ("messages",),
    "text": ("prompt", "messages"),
    "input": ("prompt", "messages"),
    "input_ids": ("prompt_token_ids",),
    "messages": ("prompt",),
    "prompt_token_ids": ("prompt",),
}


class JBatchError(Exception):
    """Base of every error that jbatch raises on purpose."""


class ConfigError(JBatchError, ValueError):
    """A model or engine configuration that jbatch refuses.

    Attributes:
      field: the name of the field that is wrong.
      value: what it was set to.
    """

    def __init__(self, field: str, value: Any, reason: str):
        self.field, self.value, self.reason = field, value, reason
        super().__init__(f"{field}={_shorten(value)}: {reason}")


class RequestError(JBatchError, ValueError):
    """One request that cannot be served; the rest of its batch goes on.

    Attributes:
      field: the request field that is wrong.
      value: what it was set to.
      code: a stable, machine-readable name of the reason.
    """

    def __init__(self, field: str, value: Any, reason: str, *, code: str = "invalid_request"):
        self.field, self.value, self.reason, self.code = field, value, reason, code
        super().__init__(f"{field}={_shorten(value)}: {reason}")


class JobError(JBatchError):
    """A job that had to stop. What it wrote stays, and the same command goes on from there."""


def check_option_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise TypeError for a name in `given` that is not in `known`, suggesting the closest one."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(_no_option(name, known, what))


def unknown_field(path: str, name: Any, value: Any, known: Iterable[str], what: str) -> RequestError:
    """The error of a field within `path` that `what` does not have, suggesting the one that was meant."""
    shown = str(name)[:MAX_NAME_CHARS]
    at = f"{path}.{repr(shown)[1:-1]}" if path else repr(shown)[1:-1]
    return RequestError(at, value, _no_option(shown, list(known), what), code="unknown_field")


def _no_option(name: str, known: list[str], what: str) -> str:
    close = [other for other in MEANT.get(name, ()) if other in known]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=MIN_LIKENESS)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
    return f"{what} has no option {name!r}{hint}"


def _shorten(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[:limit] + "..."
