"""The file of a job's metrics: what Prometheus reads of it, when it is written, and faults."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jbatch.engine.metric import Gauge
from jbatch.errors import ConfigError
from jbatch.jobs.metrics_file import MetricsFile
from jbatch.jobs.options import JobOptions
from tests.helpers.fake_job import JOB, run_here, write_input


def test_a_job_leaves_its_metrics(place):
    write_input(place, 9)
    ended = run_here(place, *JOB, "--metrics-file", "jbatch.prom")
    assert ended.code == 0, ended.err
    families = list(text_string_to_metric_families((place / "jbatch.prom").read_text()))
    by_name = {family.name: family for family in families}
    assert len(by_name) == len(families)
    (tokens,) = by_name["jbatch:generation_tokens"].samples
    assert tokens.name == "jbatch:generation_tokens_total" and tokens.value > 0
    assert by_name["jbatch:kv_cache_usage_perc"].type == "gauge"
    latency = by_name["jbatch:e2e_request_latency_seconds"]
    assert latency.type == "histogram"
    (count,) = (sample.value for sample in latency.samples if sample.name.endswith("_count"))
    buckets = [sample.value for sample in latency.samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == count > 0
    assert sorted(path.name for path in place.glob("jbatch.prom*")) == ["jbatch.prom"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_it_is_written_anew_every_five_seconds(tmp_path):
    clock, path = Clock(), tmp_path / "metrics"
    file = MetricsFile(
        str(path), lambda: [Gauge(name="now", documentation="", value=clock())], pytest.fail, clock
    )
    seen = []
    for clock.now in (0.0, 4.9, 5.0, 9.0, 10.5):
        file.on_step()
        seen.append(path.read_text().split()[-1])
    assert seen == ["0.0", "0.0", "5.0", "5.0", "10.5"]


def test_no_path_no_file(tmp_path):
    file = MetricsFile(None, lambda: pytest.fail("read"), pytest.fail)
    file.on_step()
    file.write()


def test_a_file_that_cannot_be_written_is_named_once_and_the_job_goes_on(tmp_path):
    said, clock = [], Clock()
    gone = tmp_path / "gone"
    file = MetricsFile(str(gone / "metrics"), list, said.append, clock)
    for clock.now in (0.0, 6.0):
        file.on_step()
    assert len(said) == 1 and str(gone / "metrics") in said[0] and "No such file" in said[0]
    gone.mkdir()
    clock.now = 12.0
    file.on_step()
    assert (gone / "metrics").exists()


def test_a_folder_that_is_not_there_is_refused_at_the_start(place):
    write_input(place, 3)
    ended = run_here(place, *JOB, "--metrics-file", "gone/jbatch.prom")
    assert ended.code == 2 and "gone/jbatch.prom" in ended.err
    assert not (place / "out.jsonl").exists()


@pytest.mark.parametrize("path", ["-", "/dev/null", "out.jsonl", "in.jsonl", "figures.json"])
def test_what_cannot_be_the_file_is_refused(path):
    with pytest.raises(ConfigError, match="metrics_file"):
        JobOptions(input_file="in.jsonl", output_file="out.jsonl", summary="figures.json", metrics_file=path)
