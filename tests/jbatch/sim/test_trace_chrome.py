"""A trace in Perfetto's form."""

from jbatch.sampling_params import SamplingParams
from jbatch.sim.trace_chrome import ROWS, to_chrome
from jbatch.sim.trace_file import read_trace
from tests.helpers.tiny_engine import drain
from tests.jbatch.sim.test_trace_replay import make_engine


def test_rows_are_tracks_and_sequences_slices(tmp_path):
    engine = make_engine(num_rows=2)
    with engine.trace_to(tmp_path / "trace"):
        for number in range(5):
            engine.add_request(str(number), [number], SamplingParams(max_tokens=4, ignore_eos=True))
        drain(engine)
    events = to_chrome(read_trace(tmp_path / "trace"))["traceEvents"]
    tracks = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert tracks == {0, 1}
    stays = sorted(
        (e["tid"], e["ts"], e["dur"], e["name"]) for e in events if e["pid"] == ROWS and e["ph"] == "X"
    )
    assert sorted(stay[3] for stay in stays) == [f"sequence {number}" for number in range(5)]
    steps = [event for event in events if event["ph"] == "X" and event["pid"] != ROWS]
    assert len(steps) == engine.summary.num_steps
    assert min(event["ts"] for event in steps) == 0
    pages = [event["args"]["pages"] for event in events if event["name"] == "pages in use"]
    assert max(pages) == engine.summary.peak_pages_used > 0


def test_a_sequence_that_was_preempted_has_a_slice_for_each_stay(tmp_path):
    engine = make_engine(num_pages=9)
    with engine.trace_to(tmp_path / "trace"):
        for number in range(4):
            engine.add_request(str(number), [number] * 5, SamplingParams(max_tokens=60, ignore_eos=True))
        drain(engine)
    events = to_chrome(read_trace(tmp_path / "trace"))["traceEvents"]
    stays = [event for event in events if event["pid"] == ROWS and event["ph"] == "X"]
    assert engine.summary.num_preempted > 0
    assert len(stays) == 4 + engine.summary.num_preempted
