"""Errors a caller can act on. Each message names the field, the value and the limit."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from jbatch.names_elsewhere import instead_of, nearest_name

Class = TypeVar("Class", bound=type)
MAX_NAME_CHARS = 64  # of a field, in an error
MAX_VALUE_CHARS = 120
# Errors of the system that are nobody's mistake: what is full, broken, gone or used up.
FAILURES = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ESTALE", "ENXIO", "ENODEV", "EPIPE"})
FAILURES |= {"EBADF", "ENOMEM", "EMFILE", "ENFILE", "ENOLCK"}


class JBatchError(Exception):
    """Base of every error that jbatch raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:  # pickled by its text, whatever its own arguments are
        return _restored, (type(self), self.args, self.__dict__)


def _restored(cls: type[JBatchError], args: tuple[Any, ...], attributes: dict[str, Any]) -> JBatchError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


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


class OutputWarning(UserWarning):
    """Of a call's outputs: prompts failed, or most texts were cut off by their length."""


class UserFunctionError(JBatchError):
    """A function of the caller's own that fails for no request in particular. Nothing was changed."""

    def __init__(self, option: str, function: Any, reason: str):
        name = getattr(function, "__name__", type(function).__name__)
        super().__init__(f"{option}={name!r}: {reason}")


class JobError(JBatchError):
    """A job that had to stop. What it wrote stays, and the same command goes on from there."""


class OutputChanged(JobError):
    """A job that had to stop, as somebody else wrote to its output. What is there now stays."""

    def __init__(self, path: str, how: str):
        super().__init__(f"{path} was changed by someone else while it was written: {how}")


def changed_in_a_copy(cls: Class) -> Class:
    """Have a frozen dataclass say how its fields are changed, where somebody assigns to one."""

    def refuse(self: Any, name: str, value: Any) -> None:
        copy = f"dataclasses.replace(..., {name}={_shorten(value)}) makes a copy with it"
        raise dataclasses.FrozenInstanceError(f"cannot assign to {name!r} of {cls.__name__}: {copy}")

    setattr(cls, "__setattr__", refuse)  # noqa: B010  (mypy knows no such attribute of a class)
    return cls


def stacklevel_of_caller() -> int:
    """The `stacklevel` with which a warning names the line outside jbatch that led to it."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "jbatch":
        frame, level = frame.f_back, level + 1
    return level


def describe_os_error(error: OSError) -> str:
    """What the system refused, and of which file, without the number of the error."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {os.fsdecode(error.filename)!r}"


def is_failure(error: OSError) -> bool:
    """Whether the machine failed, as a full disk does; else the user named what is not there, or not his."""
    return errno.errorcode.get(error.errno or 0) in FAILURES


def check_option_names(
    given: Iterable[str], known: Iterable[str], what: str, in_params: Iterable[str] = ()
) -> None:
    """Raise TypeError for a name in `given` that is not in `known`, suggesting the closest one, or saying
    that it belongs `in_params`: fields of SamplingParams."""
    known = list(known)
    for name in given:
        if name not in known:
            if name in in_params:
                raise TypeError(f"{what} has no option {name!r}: it belongs in SamplingParams({name}=...)")
            raise TypeError(_no_option(name, known, what))


def unknown_field(path: str, name: Any, value: Any, known: Iterable[str], what: str) -> RequestError:
    """The error of a field within `path` that `what` does not have, suggesting the closest one it has."""
    shown = str(name)[:MAX_NAME_CHARS]
    at = f"{path}.{repr(shown)[1:-1]}" if path else repr(shown)[1:-1]
    return RequestError(at, value, _no_option(shown, list(known), what), code="unknown_field")


def _no_option(name: str, known: list[str], what: str) -> str:
    if (instead := instead_of(name)) is not None:
        return f"{what} has no option {name!r}: {instead}"
    nearest = nearest_name(name, known)
    hint = f"; known: {', '.join(sorted(known))}" if nearest is None else f"; did you mean {nearest!r}?"
    return f"{what} has no option {name!r}{hint}"


def _shorten(value: Any) -> str:
    """Both ends of a long value: of a path, the end tells more."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"<{type(value).__name__}>"
    half = MAX_VALUE_CHARS // 2
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:half]}...{text[-half:]}"
