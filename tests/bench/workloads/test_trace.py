"""Traces: the first lines of a file, and errors that name the line."""

import numpy as np
import pytest

from bench.workloads.trace import TraceError, read_trace
from bench.workloads.workload import make_workload

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
LINES = [
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
    "2023-11-16 18:16:46.6805900,20,0",
]


@pytest.fixture
def write(tmp_path):
    def write(*lines, header=HEADER):
        path = tmp_path / "trace.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return path

    return write


def test_reads_the_first_requests(write):
    trace = read_trace(write(*LINES), 2)
    assert trace.arrivals == pytest.approx([0, 4.314579])
    assert trace.prompt_lens.tolist() == [374, 396] and trace.output_lens.tolist() == [44, 109]


def test_other_columns_and_seconds_are_fine(write):
    path = write("1,x,10.5,2", "3,y,12,4", header="ContextTokens,Region,TIMESTAMP,GeneratedTokens")
    trace = read_trace(path, 2)
    assert trace.arrivals.tolist() == [0, 1.5] and trace.output_lens.tolist() == [2, 4]


def test_a_workload_of_it_is_scaled_and_capped(write):
    options = dict(dataset_path=write(*LINES), length_scale=0.25, time_scale=0.5)
    workload = make_workload("trace", num_prompts=3, seed=0, vocab_size=264, max_model_len=100, **options)
    assert [len(item.prompt_token_ids) for item in workload.items] == [89, 73, 5]
    assert [item.output_len for item in workload.items] == [11, 27, 1]
    assert np.allclose([item.arrival for item in workload.items], [0, 4.314579 / 2, 30])
    assert workload.scales == {
        "length_scale": 0.25,
        "time_scale": 0.5,
        "dataset_path": "trace.csv",
        "capped": 2,
    }


@pytest.mark.parametrize(
    "lines, header, message",
    [
        (LINES, "TIMESTAMP,ContextTokens", r"trace.csv:1: no column GeneratedTokens; a trace has TIMESTAMP"),
        (LINES[:2], HEADER, "has 2 requests, --num-prompts asks for 3"),
        ([LINES[0], "2023-11-16 18:15:50,-3,4"], HEADER, r"trace.csv:3: ContextTokens='-3': must be from 0"),
        (
            [LINES[0], "2023-11-16 18:15:50,3,many"],
            HEADER,
            r"trace.csv:3: GeneratedTokens='many': must be an",
        ),
        (
            [LINES[0], "2023-11-16 18:15:50,3"],
            HEADER,
            r"trace.csv:3: GeneratedTokens=None: must be an integer",
        ),
        (["yesterday,3,4"], HEADER, r"trace.csv:2: TIMESTAMP='yesterday': must be a date and time"),
        (["nan,3,4"], HEADER, r"trace.csv:2: TIMESTAMP='nan': must be a date"),
        ([LINES[1], LINES[0]], HEADER, r"trace.csv:3: TIMESTAMP=.*is before the line above"),
    ],
)
def test_errors_name_the_line(lines, header, message, write):
    with pytest.raises(TraceError, match=message):
        read_trace(write(*lines, header=header), 3)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"none.csv: cannot be read"):
        read_trace(tmp_path / "none.csv", 1)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match=r"binary.csv: cannot be read"):
        read_trace(tmp_path / "binary.csv", 1)
