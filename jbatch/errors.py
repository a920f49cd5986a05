"""Errors a caller can act on. Each message names the field, the value and the limit."""

from __future__ import annotations

from typing import Any


class JBatchError(Exception):
    """Base of every error that jbatch raises on purpose."""


class ConfigError(JBatchError):
    """A model or engine configuration that jbatch refuses.

    Attributes:
      field: the name of the field that is wrong.
      value: what it was set to.
    """

    def __init__(self, field: str, value: Any, reason: str):
        self.field, self.value, self.reason = field, value, reason
        super().__init__(f"{field}={value!r}: {reason}")


class RequestError(JBatchError, ValueError):
    """One request that cannot be served; the rest of its batch goes on.

    Attributes:
      field: the request field that is wrong.
      value: what it was set to (shortened where long).
      code: a stable, machine-readable name of the reason.
    """

    def __init__(self, field: str, value: Any, reason: str, *, code: str = "invalid_request"):
        self.field, self.value, self.reason, self.code = field, value, reason, code
        super().__init__(f"{field}={_shorten(value)}: {reason}")


def _shorten(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
