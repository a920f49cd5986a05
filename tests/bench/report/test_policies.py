"""The policy lab as a section of the report."""

import json

import pytest

from bench.report import command as report
from bench.report.policies import NO_QUEUE_TEXT
from jbatch.errors import ConfigError

OUTCOME = {
    "policy": "fcfs", "predictor": "none", "admission": "optimistic", "makespan": 10.0, "mean_e2el": 4.0,
    "p50_e2el": 3.0, "p99_e2el": 9.0, "mean_ttft": 2.0, "met": 0.5, "fairness": 0.75, "num_preempted": 3,
    "recomputed": 70, "queued": 0.9, "regret": None,
}  # fmt: skip
SJF = OUTCOME | {"policy": "sjf", "predictor": "noisy", "mean_e2el": 2.0, "regret": 0.25}


def write(folder, outcomes):
    workload = {
        "name": "bursty_traffic",
        "num_prompts": 8,
        "num_prompt_tokens": 1234,
        "num_output_tokens": 99,
    }
    simulated = {"model": "llama3-8b", "device": "NVIDIA H200, derived", "max_num_seqs": 4, "num_pages": 73}
    content = {"schema": 1, "kind": "policies", "workload": workload | {"seed": 0}, "simulated": simulated}
    (folder / "lab.json").write_text(json.dumps(content | {"outcomes": outcomes}))
    return report.write(folder).read_text()


def test_a_table_and_pictures(tmp_path):
    page = write(tmp_path, [OUTCOME, SJF])
    assert "Policies: bursty_traffic, simulated" in page and "NVIDIA H200, derived; 4 sequences" in page
    assert "Mean latency. fcfs: 4.00 s; sjf, noisy: 2.00 s." in page
    assert "+25%" in page and "50%" in page and NO_QUEUE_TEXT not in page
    pictures = {file.name for file in tmp_path.glob("*.svg")}
    assert pictures == {"lab-mean-e2el.svg", "lab-p99-e2el.svg", "lab-makespan.svg"}


def test_where_no_queue_formed_it_says_so(tmp_path):
    assert NO_QUEUE_TEXT in write(tmp_path, [OUTCOME | {"queued": 0.01}, SJF | {"queued": 0.02}])


def test_a_file_that_lacks_something_is_left_out_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"lab\.json is malformed: KeyError"):
        write(tmp_path, [{"policy": "fcfs"}])
