"""The first inputs of every fuzzed surface (tests/long/fuzz.py has more), and the watch over them."""

import collections
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jbatch.jobs.request_line import LineError
from tests.helpers import fuzz
from tests.helpers.jsonl_fuzz import CODES, check_line, make_line
from tests.helpers.sizes import sized

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("surface", fuzz.SURFACES)
def test_broken_input(surface):
    found = list(fuzz.failures(fuzz.check_of(surface), range(sized(300, 2000))))
    assert not found, found[:10]


def test_lines_reach_every_answer():
    """Or the fuzzer would test the JSON parser alone."""
    answers = [check_line(make_line(random.Random(seed))) for seed in range(1000)]
    codes = collections.Counter(a.code if isinstance(a, LineError) else "ok" for a in answers)
    assert set(codes) == CODES - {"line_too_long"} | {"ok"}
    assert min(codes.values()) > 10 and codes["ok"] > 200 and codes["invalid_json"] < 500


def test_what_gets_through_is_reported(monkeypatch):
    def check(seed):
        if seed == 1:
            raise ValueError("a bug")
        while seed == 2:
            pass

    monkeypatch.setattr(fuzz, "LIMIT_S", 0.05)
    assert list(fuzz.failures(check, range(4))) == [
        "seed 1: ValueError: a bug",
        "seed 2: no end after 0.05 s",
    ]


def test_the_script():
    done = subprocess.run(
        [sys.executable, "-m", "tests.long.fuzz", "jsonl", "--count", "50", "--seed", "7"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("jsonl: seeds 7 to 56: 0 of 50 failed; ")
