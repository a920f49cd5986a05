"""Which lines of a job go to the engine one after the other."""

import itertools
import json

import pytest

from jbatch.jobs import lookahead
from jbatch.jobs.input import InputLine
from jbatch.jobs.lookahead import in_groups
from tests.helpers.fake_job import JOB, make_directory, run_here
from tests.helpers.job_loop import answer, make_engine

MANY = 64


def lines_of(*prompts, **fields):
    """Of texts, and of whatever else a line may hold."""
    raws = [
        p if isinstance(p, bytes) else json.dumps({"custom_id": str(n), "prompt": p, **fields}).encode()
        for n, p in enumerate(prompts)
    ]
    return list(itertools.starmap(InputLine, enumerate(raws, start=1)))


def order(lines, most=4096):
    return [line.line_no for line in in_groups(lines, most)]


def test_equal_beginnings_are_neighbours_and_the_first_line_is_first():
    a, b = "a" * 200, "b" * 200
    assert order(lines_of(b, a, b + "x", "c", a + "y", b)) == [1, 6, 3, 2, 5, 4]
    assert order(lines_of("5", "4", "3", "2")) == [1, 2, 3, 4], "nothing in common: as they came"


def test_longer_beginnings_are_closer():
    """As few-shot examples are behind one instruction that all lines have."""
    system = "s" * 500
    prompts = [system + shots * 100 + str(n) for n in range(4) for shots in "abc"]
    assert order(lines_of(*prompts)) == [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]


@pytest.mark.parametrize("field", ["prompt_token_ids", "messages"])
def test_other_prompts(field):
    def raw(text, number):
        value = [ord(char) for char in text] if field != "messages" else [{"role": "user", "content": text}]
        return json.dumps({"custom_id": f"{number} {text}", "body": {"model": "m", field: value}}).encode()

    texts = ["a" * 100, "b" * 100] * 3
    assert order(lines_of(*map(raw, texts, range(6)))) == [1, 3, 5, 2, 4, 6]


def test_a_window_is_bounded_in_lines_and_bytes(monkeypatch):
    prompts = ["a" * 100, "b" * 100] * 3
    assert order(lines_of(*prompts), most=3) == [1, 3, 2, 4, 6, 5]
    assert order(lines_of(*prompts), most=1) == [1, 2, 3, 4, 5, 6]
    read = []
    source = (read.append(line.line_no) or line for line in lines_of(*prompts))
    monkeypatch.setattr(lookahead, "MAX_BYTES", 300)
    next(in_groups(source, 4096))
    assert read == [1, 2, 3], "and no more of it is in memory"


def test_nothing_is_lost_whatever_lines_are():
    same = json.dumps({"prompt": "x" * 64 * 300}).encode()  # longer than what is compared
    given = lines_of(b"{\n", same, b"\xff", b'"prompt":', same, same + b" ", b'{"prompt": "')
    assert sorted(order(given)) == [1, 2, 3, 4, 5, 6, 7] and order([]) == []


def test_of_a_whole_job(tmp_path):
    """The option is checked, and heeded."""
    place = make_directory(tmp_path)
    for number in ("0", "1048577", "x"):
        ended = run_here(place, *JOB, "--lookahead", number)
        assert ended.code == 2 and f"lookahead={number}" in ended.err.replace("'", "")
    texts = ["05." * 40, "06." * 40] * 3
    lines = [{"prompt": text, "max_tokens": 1, "temperature": 0} for text in texts]
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for options, expected in (([], "135246"), (["--lookahead", "1"], "123456")):
        (place / "out.jsonl").unlink(missing_ok=True)
        assert run_here(place, *JOB, *options).code == 0
        results = (place / "out.jsonl").read_text().splitlines()
        assert "".join(json.loads(result)["custom_id"][-1] for result in results) == expected


def test_prefixes_that_take_turns_are_found_again():
    """64 of them, line by line, and a pool that holds few. Counted: 7 of 8 lines could find their prefix."""
    prefixes = ["".join(f"{3 + (n * 7 + i * i) % 90:02}." for i in range(48)) for n in range(MANY)]
    lines = [
        {"prompt": f"{prefix}{3 + turn:02}.{3 + n:02}."}
        for turn in range(8)
        for n, prefix in enumerate(prefixes)
    ]
    texts, rates = [], []
    for most in (1, 4096):
        engine = make_engine()
        ended, results, _ = answer(*lines, engine=engine, most=most)
        assert ended and engine.scheduler.pool.num_usable == 16
        texts.append(sorted((result["custom_id"], result["text"]) for result in results))
        rates.append((engine.summary.hit_rate, engine.summary.reachable_hit_rate))
    assert texts[0] == texts[1]
    (hits, reachable), (grouped_hits, grouped_reachable) = rates
    assert reachable == grouped_reachable == pytest.approx(48 * 7 / 8 / 50)
    assert hits == 0 and grouped_hits > 0.8 * reachable
