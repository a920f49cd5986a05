"""Traces by JAX's profiler: steps are marked in them, and outside of them nothing is."""

from contextlib import nullcontext

import pytest

from jbatch.device.profile import Profile
from jbatch.errors import ConfigError, JBatchError
from jbatch.sampling_params import SamplingParams
from tests.helpers.tiny_engine import drain, make_engine, shared_runner


def test_steps_are_marked(tmp_path):
    engine, profile = make_engine(), shared_runner().profile
    assert isinstance(profile.step("x"), nullcontext)
    profile.start(tmp_path)
    try:
        with pytest.raises(JBatchError, match="under way"):
            profile.start(tmp_path)
        with pytest.raises(JBatchError, match="no profile can be started"):
            Profile().start(tmp_path)  # of another runner
        engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=2))
        drain(engine)
    finally:
        profile.stop()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert b"jbatch step" in trace.read_bytes()
    with pytest.raises(JBatchError, match="no profile"):
        profile.stop()


def test_what_is_no_directory_is_refused_before_a_trace_begins(tmp_path):
    profile = Profile()
    with pytest.raises(ConfigError, match=r"^directory=.*: must be the path of a directory"):
        profile.start(__file__)
    assert not profile.under_way
    profile.start(tmp_path)
    profile.stop()


def test_a_directory_that_cannot_be_made_is_refused_at_the_start(tmp_path):
    """At the end the trace would be lost."""
    (tmp_path / "file").write_text("mine")
    profile = Profile()
    with pytest.raises(ConfigError, match=r"directory='.*file/inside': cannot be made: Not a directory"):
        profile.start(tmp_path / "file" / "inside")
    assert not profile.under_way
