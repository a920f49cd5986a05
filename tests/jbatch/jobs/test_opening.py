"""An output that is opened: whose it is, what is in it, and what is said of it."""

import functools
import io
import json
from contextlib import ExitStack

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs.input import scan_input
from jbatch.jobs.opening import open_output
from jbatch.jobs.options import JobOptions
from jbatch.jobs.request_line import parse_line
from jbatch.jobs.state import JobState, save_state, state_path

INPUT = b"".join(b'{"prompt": "x", "custom_id": "%s"}\n' % name for name in (b"a", b"b", b"c"))
SCAN = scan_input(
    io.BytesIO(INPUT), functools.partial(parse_line, defaults={}), JobOptions("i", "o").parsed_shard
)
STATE = JobState(SCAN.sha256, "1/1", {}, {}, {})
TORN = b'{"custom_id":"b"'


def result(name: str, **fields) -> bytes:
    return json.dumps({"custom_id": name, **fields}).encode() + b"\n"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def opened(output):
    """Opens it, and gives the lines that are done, what was said, and what is in the file then."""
    with ExitStack() as stack:

        def open_it(state=STATE, **options):
            said = []
            _, file, done = open_output(
                JobOptions("i", str(output), **options), state, SCAN, said.append, stack
            )
            assert file.size == len(output.read_bytes())
            return [line_no for line_no in (1, 2, 3) if line_no in done], said, output.read_bytes()

        yield open_it


def test_a_new_output(output, opened):
    assert opened() == ([], [], b"")
    assert json.loads((output.parent / "out.jsonl.job.json").read_bytes())["input"] == SCAN.sha256


def test_an_output_of_this_job(output, opened):
    save_state(str(output), STATE)
    stranger = result("z")
    output.write_bytes(result("a") + stranger + result("c", error={}) + TORN)
    (output.parent / "out.jsonl.01234567.jbatch-tmp").touch()
    done, said, left = opened()
    assert done == [1, 3] and left == result("a") + stranger + result("c", error={})
    assert said == [
        f"removed a torn result of {len(TORN)} bytes from the end of {output}",
        "going on: 2 of 3 have their results",
        "1 results are of no line of this input: they stay",
    ]
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]


def test_errors_that_are_to_run_again(output, opened):
    save_state(str(output), STATE)
    output.write_bytes(result("a") + result("c", error={}) + TORN)
    done, said, left = opened(retry_errors=True)
    assert done == [1] and left == result("a")
    assert said[1] == "removed 1 error results: their lines run again"


def test_another_job_s_output_is_neither_changed_nor_locked(output, opened):
    save_state(str(output), STATE)
    output.write_bytes(result("a") + TORN)
    other = JobState("f" * 64, "1/1", {}, {}, {})
    with pytest.raises(ConfigError, match="was begun with another input"):
        opened(other)
    assert output.read_bytes() == result("a") + TORN
    assert opened(other, force=True)[0] == [1]
    with open(state_path(str(output)), "rb") as file:
        assert json.load(file)["input"] == "f" * 64


def test_a_folder_is_no_output(output, opened):
    output.mkdir()
    with pytest.raises(ConfigError, match=rf"^output='{output}': is a folder$"):
        opened()
