"""A job on the demo model, through the command line: killed twice, with the texts of a job that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.command import DEMO, run
from weights.demo import tasks

NUM_LINES = 60
OPTIONS = ("--device", "cpu", "--max-num-seqs", "2", "--max-model-len", "256", "--page-size", "16")
OPTIONS += ("--max-num-batched-tokens", "64", "--num-pages", "20", "--max-tokens", "24", "--temperature", "0")


def write_input(path, num: int) -> list[tasks.Example]:
    """Every third line draws at random, so that its text depends on its seed; some of them are OpenAI's,
    with log-probabilities, or have two samples."""
    examples = tasks.demo_prompts(num, seed=3)
    with path.open("w") as file:
        for number, example in enumerate(examples):
            request = {"prompt": example.prompt}
            request |= {"temperature": 2.0} if number % 3 == 0 else {}
            request |= {"n": 2} if number % 6 == 0 else {}
            if number % 12 == 0:
                body = {**request, "logprobs": 2}
                line = {"method": "POST", "url": "/v1/completions", "body": body}
            else:
                line = request
            file.write(json.dumps({"custom_id": f"{number}", **line}) + "\n")
    return examples


def results_of(path) -> dict[str, dict]:
    results = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len({result["custom_id"] for result in results}) == len(results)
    return {result["custom_id"]: result for result in results}


def take_logprobs(results: dict[str, dict]) -> list[float]:
    """Out of the results: those of tokens, whose last bits depend on what else was in their steps."""
    numbers = []
    for result in sorted(results.values(), key=lambda result: result["custom_id"]):
        for choice in result["response"]["body"]["choices"] if "response" in result else ():
            logprobs = choice.pop("logprobs")
            lengths = {len(logprobs[name]) for name in ("tokens", "top_logprobs", "token_logprobs")}
            assert len(lengths) == 1 and lengths != {0}
            numbers += logprobs["token_logprobs"]
    return numbers


def kill_at(job: tuple, out, num_results: int) -> None:
    """Run a job until it has written so many results."""
    process = subprocess.Popen([sys.executable, "-m", "jbatch", *map(str, job)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < num_results:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -9


@pytest.mark.long
def test_a_job_killed_twice(tmp_path, capsys):
    examples = write_input(tmp_path / "in.jsonl", NUM_LINES)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    job = ("generate", DEMO, "-i", tmp_path / "in.jsonl", *OPTIONS, "-o")
    ended = run(capsys, *job, whole)
    assert ended.code == 0 and "0 compilations after warm-up" in ended.err, ended.err
    for num_results in (5, 20):
        kill_at((*job, killed), killed, num_results)
    there = killed.read_bytes().count(b"\n")
    assert 20 <= there < NUM_LINES, "it was killed too late"
    ended = run(capsys, *job, killed, "--ordered", "--summary", tmp_path / "figures.json")
    assert ended.code == 0 and f"going on: {there} of {NUM_LINES}" in ended.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["completed"] == NUM_LINES - there, "what had finished was computed again"
    expected, got = results_of(whole), results_of(killed)
    assert take_logprobs(got) == pytest.approx(take_logprobs(expected), abs=1e-4)
    assert got == expected and list(got) == [str(number) for number in range(NUM_LINES)]
    greedy = [number for number in range(NUM_LINES) if number % 3]
    texts = [got[str(number)]["text"] for number in greedy]  # cut off after 24 tokens
    answers = [examples[number].answer[: len(text)] for number, text in zip(greedy, texts, strict=True)]
    assert texts == answers and all(texts), "the answers are not those of their lines"
    assert not os.path.exists(f"{killed}.lock")
