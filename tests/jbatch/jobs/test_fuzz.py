"""A job of broken lines: each gets its result, and the valid lines among them their answers."""

import json
import random

import pytest

from jbatch.jobs.request_line import LineError, parse_line
from jbatch.sampling_params import SamplingParams
from tests.helpers import fake_job
from tests.helpers.fake_job import JOB, prompt_of, run, text_of, tokens_of
from tests.helpers.jsonl_fuzz import TEMPLATES, make_line
from tests.helpers.sizes import sized

IDS = {line["custom_id"].encode() for line in TEMPLATES if "custom_id" in line}
NUM_BROKEN = sized(150, 400)


def good_line(number: int) -> bytes:
    prompt = "".join(f"{token:02}." for token in prompt_of(number))
    fields = {"custom_id": f"good {number}", "prompt": prompt, "temperature": 0}
    return json.dumps({**fields, "max_tokens": tokens_of(number)}).encode()


def broken_line(number: int, rng: random.Random) -> bytes:
    """A line from `make_line`, with an id of its own where it still has one."""
    raw = make_line(rng).replace(b"\n", b"")
    for custom_id in IDS:
        raw = raw.replace(b'"custom_id": "%s"' % custom_id, b'"custom_id": "%d"' % number)
    return raw


def read(raw: bytes, line_no: int) -> tuple[str, bool, SamplingParams | None]:
    """What the line's result goes by, whether it has OpenAI's form, and the parameters of a request."""
    try:
        line = parse_line(raw, {})
    except LineError as error:
        return error.custom_id or f"line-{line_no}", error.form != "bare", None
    return line.custom_id or f"line-{line_no}", line.form != "bare", line.params


@pytest.fixture
def lines():
    """The lines of an input by their number, from 1; with each id once."""
    rng, by_number, ids = random.Random(5), {}, set()
    while len(by_number) < 2 * NUM_BROKEN:
        line_no = len(by_number) + 1
        raw = good_line(line_no) if line_no % 2 else broken_line(line_no, rng)
        custom_id = read(raw, line_no)[0]
        if raw.strip() and custom_id not in ids:
            ids.add(custom_id)
            by_number[line_no] = raw
    return by_number


def test_the_valid_lines_are_answered(tmp_path, lines):
    place = fake_job.make_directory(tmp_path)
    (place / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines.values()))
    ended = run(place, *JOB)
    assert ended.code == 1 and "Traceback" not in ended.err, ended.err[-2000:]
    assert f"jbatch: {2 * NUM_BROKEN} requests, " in ended.err

    results = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    by_id = {result["custom_id"]: result for result in results}
    assert len(results) == len(by_id) == len(lines)
    for line_no, raw in lines.items():
        custom_id, openai, params = read(raw, line_no)
        result = by_id[custom_id]
        assert ("response" in result) == openai
        if line_no % 2:
            assert result["text"] == text_of(line_no)
        elif error := fake_job.error_in(result):
            assert error["line"] == line_no
            asks = params is not None and (params.logprobs is not None or params.logprob_token_ids)
            if not asks:  # the fake runner has no log-probabilities
                assert error["code"] != "internal_error", result
