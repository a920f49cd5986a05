"""What the system refuses."""

import copy
import errno
import pickle
import warnings

import pytest

from jbatch.errors import (
    FAILURES,
    MAX_VALUE_CHARS,
    ConfigError,
    OutputChanged,
    RequestError,
    UserFunctionError,
    describe_os_error,
    is_failure,
    stacklevel_of_caller,
)


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "No space left on device: 'a/b'"),
        (OSError(errno.ENOSPC, "No space left on device", b"a"), "No space left on device: 'a'"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("a text alone"), "a text alone"),
    ],
)
def test_what_the_system_refused(error, text):
    assert describe_os_error(error) == text


def test_failures_of_the_machine_are_told_from_mistakes():
    assert {name for name in FAILURES if hasattr(errno, name)} == FAILURES, "a name that there is not"
    assert is_failure(OSError(errno.ENOSPC, "full")) and is_failure(OSError(errno.EIO, "broken"))
    for code in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP):
        assert not is_failure(OSError(code, "a mistake"))
    assert not is_failure(OSError("a text alone"))


@pytest.mark.parametrize("error", [ConfigError, RequestError])
def test_a_long_value_keeps_both_ends_and_a_path_its_name(error):
    path = "/home/" + "deep/" * 40 + "model"
    message = str(error("model", path, "must be a directory"))
    assert message.startswith("model='/home/deep/") and message.endswith("/deep/model': must be a directory")
    assert len(message) < MAX_VALUE_CHARS + 40
    assert str(error("model", path[-100:], "no")) == f"model={path[-100:]!r}: no", "a usual path is whole"
    assert str(error("max_tokens", 10**5000, "no")) == "max_tokens=<int>: no"


def test_a_warning_names_the_line_outside():
    inside = {
        "__name__": "jbatch.some.module",
        "stacklevel_of_caller": stacklevel_of_caller,
        "warn": warnings.warn,
    }
    exec("def inner(): warn('odd', stacklevel=stacklevel_of_caller())\ndef outer(): inner()", inside)
    with pytest.warns(UserWarning, match="odd") as seen:
        inside["outer"]()
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("dtype", "int4", "must be auto"),
        RequestError("n", 0, "must be 1", code="odd"),
        OutputChanged("out.jsonl", "it grew"),
        UserFunctionError("policy", len, "it failed"),
    ],
)
def test_an_error_comes_back_from_another_process(error):
    for same in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))
