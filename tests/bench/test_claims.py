"""Files that are claimed before any work: never overwritten, and gone where nothing came of it."""

import os
import signal

import pytest

from bench.claims import claimed
from jbatch.errors import ConfigError


def test_a_claim_is_there_before_the_work(tmp_path):
    path = tmp_path / "sub" / "results.json"
    with claimed(path):
        assert path.exists()
        path.write_text("done")
    assert path.read_text() == "done"


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{}")
    message = "exists; results are never overwritten"
    with pytest.raises(ConfigError, match=message), claimed(path):
        pytest.fail("work was begun")
    with pytest.raises(ConfigError, match=message), claimed(None, tmp_path):
        pytest.fail("work was begun")
    assert path.read_text() == "{}"


def test_what_is_still_empty_after_an_error_is_removed(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path / "a.json", tmp_path / "folder"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), claimed(tmp_path / "a.json", tmp_path / "folder"):
        (tmp_path / "a.json").write_text("done")
        (tmp_path / "folder" / "b.json").write_text("done")
        raise RuntimeError
    assert (tmp_path / "a.json").exists() and (tmp_path / "folder" / "b.json").exists()


def test_an_interrupt_that_ends_the_process_leaves_no_empty_file(tmp_path):
    """Of two claims neither stays, and the handler that was there is called, and there again."""
    left = []
    before = signal.signal(signal.SIGINT, lambda *_: left.append(sorted(tmp_path.iterdir())))
    try:
        ours = signal.getsignal(signal.SIGINT)
        with claimed(tmp_path / "a.json"), claimed(tmp_path / "b.png"):
            os.kill(os.getpid(), signal.SIGINT)
        assert left == [[]] and signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)
