"""jbatch's metrics in somebody's registry."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jbatch.engine.exposition import to_text
from jbatch.integrations.prometheus import JBatchCollector
from jbatch.sampling_params import SamplingParams
from tests.helpers.pencil_engine import make_engine
from tests.helpers.tiny_engine import drain


class Model:
    """What a collector needs of an LLM."""

    def __init__(self):
        self.engine = make_engine()

    def get_metrics(self):
        return self.engine.metrics(0)


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_registry_has_what_the_file_has():
    model, registry = Model(), CollectorRegistry()
    registry.register(JBatchCollector(model))
    before = samples(generate_latest(registry).decode())
    model.engine.add_request("a", [1, 2], SamplingParams(max_tokens=3))
    drain(model.engine)
    after = samples(generate_latest(registry).decode())
    assert after == samples(to_text(model.get_metrics()))
    assert before["jbatch:generation_tokens_total",] == 0 and after["jbatch:generation_tokens_total",] == 3
    assert after["jbatch:request_success_total", ("finished_reason", "length")] == 1
