"""What the system refuses."""

import errno

import pytest

from jbatch.errors import (
    FAILURES,
    describe_os_error,
    is_failure,
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
