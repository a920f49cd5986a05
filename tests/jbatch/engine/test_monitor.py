"""An engine's metrics: what they count, checked with a pencil."""

from jbatch.engine.exposition import to_text
from jbatch.engine.metric import Counter, Histogram
from jbatch.engine.monitor import Histo
from jbatch.errors import RequestError
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner
from jbatch.text.tokenizer import Tokenizer
from tests.helpers import tiny_engine
from tests.helpers.pencil_engine import make_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tiny_engine import drain


def read(engine):
    """Metrics by name, or by name and label."""
    metrics = engine.metrics(0)
    return {(m.name.removeprefix("jbatch:"), *m.labels.values()): m for m in metrics}


def values(engine):
    return {key: metric.value for key, metric in read(engine).items() if not isinstance(metric, Histogram)}


def test_requests_and_tokens_are_counted():
    engine = make_engine()
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=3))
    engine.add_request("b", [3], SamplingParams(max_tokens=4, n=2))
    engine.add_request("c", [1, 2, 3], SamplingParams(max_tokens=9))
    engine.add_request("none", [1], SamplingParams(max_tokens=0))
    engine.abort("c")
    drain(engine)
    found, histograms = values(engine), read(engine)
    ends = {reason: found["request_success", reason] for reason in ("stop", "length", "abort", "error")}
    assert ends == {"stop": 0, "length": 4, "abort": 1, "error": 0}
    assert found["prompt_tokens",] == 2 + 1 + 3 + 1
    assert found["generation_tokens",] == 3 + 2 * 4
    assert (found["num_requests_running",], found["num_requests_waiting",]) == (0, 0)
    assert histograms["request_params_n",].count == 4
    assert histograms["request_generation_tokens",].sum == 3 + 2 * 4
    assert histograms["time_to_first_token_seconds",].count == 2
    assert histograms["e2e_request_latency_seconds",].count == 4


def test_gauges_say_what_runs_and_waits():
    engine = make_engine(num_rows=2)
    for name in "abc":
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=5))
    engine.step()
    found = values(engine)
    assert (found["num_requests_running",], found["num_requests_waiting",]) == (2, 1)
    assert found["kv_cache_usage_perc",] == engine.scheduler.pool.num_used / engine.scheduler.pool.num_usable
    drain(engine)
    assert values(engine)["kv_cache_usage_perc",] == 0


def test_every_place_of_a_step_has_a_cause():
    config = scheduler_config(num_pages=9)
    engine = tiny_engine.make_engine(Scheduler(config), FakeRunner(config.shape, VOCAB_SIZE))
    for number in range(9):
        engine.add_request(str(number), [number] * 5, SamplingParams(max_tokens=60))
    drain(engine)
    found, summary = values(engine), engine.summary
    places = {key[1]: value for key, value in found.items() if key[0] == "step_places"}
    slots = {key[1]: value for key, value in found.items() if key[0] == "slot_steps"}
    assert sum(places.values()) == summary.slot_steps + summary.prefill_tokens
    assert sum(slots.values()) == summary.slot_steps
    assert summary.num_preempted > 0 and places["recomputed"] == summary.recomputed > 0
    assert found["num_preemptions",] == summary.num_preempted


def test_a_token_of_a_decoding_sequence_has_a_latency():
    now = [0.0]

    def clock():
        return now[0]

    engine = make_engine(clock=clock, overlap=False)
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=4))
    while engine.has_unfinished:
        now[0] += 0.25
        engine.step()
    latency = read(engine)["inter_token_latency_seconds",]
    assert (latency.count, latency.sum) == (3, 0.75)
    per_token = read(engine)["request_time_per_output_token_seconds",]
    assert (per_token.count, per_token.sum) == (1, 0.25)
    assert read(engine)["time_to_first_token_seconds",].sum == 0.25


def test_a_bound_is_in_its_bucket():
    histo = Histo((1.0, 2.0))
    for value in (0, 1, 1.5, 2, 9):
        histo.add(value)
    histo.add(2, times=3)
    found = histo.read("x", "x")
    assert dict(found.buckets) == {"1.0": 2, "2.0": 7, "+Inf": 8}
    assert (found.count, found.sum) == (8, 19.5)


def test_what_could_not_be_queued_is_an_error(monkeypatch):
    def fails(*_, **__):
        raise RequestError("stop", "x", "no")

    engine = make_engine()
    monkeypatch.setattr(Tokenizer, "detokenizer", fails)
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=3, stop="05"))
    drain(engine)
    assert values(engine)["request_success", "error"] == 1


def test_labels_are_of_vllm():
    names = {key[0] for key in read(make_engine())}
    assert names >= {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries",
        "prefix_cache_hits", "prompt_tokens", "prompt_tokens_cached", "generation_tokens", "num_preemptions",
        "request_success", "iteration_tokens_total", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
        "request_prompt_tokens", "request_generation_tokens", "request_params_n",
        "request_params_max_tokens",
    }  # fmt: skip


def test_a_counter_has_its_name_in_the_text():
    text = to_text([Counter(name="jbatch:x", documentation="About x.", value=3, labels={"cause": "y"})])
    head = "# HELP jbatch:x_total About x.\n# TYPE jbatch:x_total counter\n"
    assert text == head + 'jbatch:x_total{cause="y"} 3\n'
