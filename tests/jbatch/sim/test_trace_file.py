"""Traces as files: holes, torn lines and other things are named by file and line."""

import json

import pytest

from jbatch.sampling_params import SamplingParams
from jbatch.sim.trace_file import TraceError, read_trace
from tests.helpers.tiny_engine import drain
from tests.jbatch.sim.test_trace_replay import make_engine


@pytest.fixture
def path(tmp_path):
    engine = make_engine()
    with engine.trace_to(tmp_path / "trace"):
        engine.add_request("a", [1, 2], SamplingParams(max_tokens=3))
        drain(engine)
    return tmp_path / "trace"


def test_a_whole_one_is_read(path):
    trace = read_trace(path)
    kinds = [line.kind for line in trace.lines if line.kind != "told"]
    assert trace.closed == "at its end" and kinds[:3] == ["add", "limits", "plan"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda lines: lines[:3] + lines[4:], "trace, line 4: it is number 4, and 3 must be here"),
        (lambda lines: lines[:3] + lines[2:], "trace, line 4: it is number 2, and 3 must be here"),
        (lambda lines: [*lines[:3], lines[3][:20]], "trace, line 4: torn"),
        (lambda lines: lines[:3], "trace: cut off after line 3"),
        (lambda lines: lines[1:], 'trace, line 1: it is number 1, and 0 must be here'),
        (lambda lines: [], "trace: no trace"),
        (lambda lines: ['{"n":0,"format":"jbatch-plans"}\n'], "trace: no trace"),
        (lambda lines: [lines[0].replace('"version":1', '"version":7')], "line 1: version 7"),
        (lambda lines: [lines[0], '{"n":1,"x":2}\n'], "line 2: nothing that a trace has"),
        (lambda lines: [lines[0], "[1]\n"], "line 2: no line of a trace"),
    ],
)  # fmt: skip
def test_what_is_none_is_named(path, change, reason):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(TraceError, match=reason):
        read_trace(path)


def test_what_is_no_text_is_named(path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="no text"):
        read_trace(path)


def test_a_scheduler_that_is_not_known_is_named(path):
    lines = path.read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["config"]["unheard_of"] = 1
    path.write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    with pytest.raises(TraceError, match="line 1: no scheduler of this version"):
        read_trace(path).config_for()
