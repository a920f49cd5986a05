"""The summary that a run could not write: from the results, and right."""

import json

import pytest

from jbatch.jobs.past_summary import figures_of_output, is_summary_of
from jbatch.jobs.resume import Done
from tests.helpers.fake_job import JOB, run_here, write_input
from tests.helpers.file_faults import ENOSPC, Disk, Fails

COUNTS = ("completed", "failed", "finish_reasons", "errors", "total_input_tokens", "total_output_tokens")
COUNTS += ("results_in_output", "errors_in_output")


def figures(place, name="figures.json") -> dict:
    return json.loads((place / name).read_text())


def counts(figures: dict) -> dict:
    return {name: figures[name] for name in COUNTS}


def test_it_has_the_counts_that_the_run_would_have_written(place):
    """Lines of all forms, with several prompts and samples, and wrong ones."""
    write_input(place, 60)
    assert run_here(place, *JOB, "--summary", "figures.json").code == 1
    ended = run_here(place, *JOB, "--summary", "late.json")
    assert ended.code == 1 and ended.err.endswith("wrote late.json from the results that are there\n")
    assert (
        counts(figures(place, "late.json")) == counts(figures(place))
        and figures(place, "late.json")["from_results"]
    )
    assert "duration_s" not in figures(place, "late.json"), "nobody knows"


def test_a_full_disk_when_it_is_written(place):
    write_input(place, 12)
    run_here(place, *JOB, "--summary", "figures.json")
    expected = counts(figures(place))
    for name in ("out.jsonl", "figures.json"):
        (place / name).unlink()
    (place / "figures.json").write_text(
        '{"results_in_output": 3, "errors_in_output": 0}'
    )  # of an earlier run
    with Disk(place, FailsFor("figures.json"), 1).entered():
        ended = run_here(place, *JOB, "--summary", "figures.json")
    assert ended.code == 3
    assert ended.err.splitlines()[-1].startswith(
        f"No space left on device: '{place}/figures.json'. out.jsonl"
    )
    assert figures(place)["results_in_output"] == 3
    assert run_here(place, *JOB, "--summary", "figures.json").code == 1
    assert counts(figures(place)) == expected
    before = (place / "figures.json").read_bytes()
    assert "wrote" not in run_here(place, *JOB, "--summary", "figures.json").err
    assert (place / "figures.json").read_bytes() == before


class FailsFor(Fails):
    """A disk that is full for some files."""

    def __init__(self, name: str):
        super().__init__(ENOSPC)
        self._name = name

    def call(self, name, real, args, where):
        if self._name in where.name:
            return super().call(name, real, args, where)
        return real(*args)


def test_results_of_earlier_versions_and_of_no_line(tmp_path):
    results = [
        {"custom_id": "a", "error": "why"},
        {"custom_id": "b", "error": {"code": "x"}},
        {"custom_id": "c", "text": "t", "finish_reason": "stop"},
        {"custom_id": "of no line", "text": "t", "finish_reason": "stop"},
        {
            "custom_id": "d",
            "response": {"status_code": 200, "body": {"choices": [], "errors": [{"index": 0}]}},
        },
    ]
    raw = [json.dumps(result).encode() + b"\n" for result in results]
    (tmp_path / "out").write_bytes(b"".join(raw))
    done = Done(4)
    for line_no, is_error in ((1, True), (2, True), (3, False), (4, False)):
        done.add(line_no, 0, is_error=is_error)
    done.foreign.append(sum(map(len, raw[:3])))
    found = figures_of_output(str(tmp_path / "out"), done)
    assert (found["errors"], found["finish_reasons"]) == ({"why": 1, "x": 1}, {"stop": 1, "error": 1})
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (2, 2, 0)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{" * 9999, '{"results_in_output": 1}'])
def test_what_is_no_summary_of_these_results(tmp_path, content):
    (tmp_path / "figures.json").write_text(content)
    assert not is_summary_of(str(tmp_path / "figures.json"), Done(1))
    assert not is_summary_of(str(tmp_path / "none.json"), Done(1))
