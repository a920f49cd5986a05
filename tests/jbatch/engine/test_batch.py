"""Requests as a batch: what is shown of them meanwhile."""

import re
from contextlib import contextmanager

from jbatch.engine import batch
from jbatch.engine.batch import complete
from jbatch.engine.prompts import list_requests
from jbatch.sampling_params import SamplingParams
from tests.helpers.replicas import make_replicas

REFUSED = -1


def test_requests_are_counted_with_the_time_that_is_left(monkeypatch):
    shown, bars = [], []

    @contextmanager
    def bar(*args, enabled):
        bars.append((*args, enabled))
        yield lambda done, note: shown.append((done, note))

    monkeypatch.setattr(batch, "progress_bar", bar)
    prompts = [[1, 2], [3], [REFUSED], *([4, idx] for idx in range(10))]
    params = SamplingParams(max_tokens=5, ignore_eos=True, n=2)
    outputs = complete(
        make_replicas(), list_requests(prompts, params, {}, iter(range(99))), show_progress=True
    )
    assert [output.error is None for output in outputs] == [True, True, False, *[True] * 10]
    assert bars == [("generating", 13, "requests", True)]
    assert shown[-1][0] == 13 and [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert re.fullmatch(r"[\d,]+ tokens/s, 0 s left", shown[-1][1])
    assert any(re.fullmatch(r"[\d,]+ tokens/s, \d:\d\d:\d\d left", note) for _, note in shown)


def test_what_gives_no_tokens_has_no_rate(monkeypatch):
    shown = []

    @contextmanager
    def bar(*args, enabled):
        yield lambda done, note: shown.append(note)

    monkeypatch.setattr(batch, "progress_bar", bar)
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=0, detokenize=False)
    complete(make_replicas(), list_requests([[1, 2, 3]], scoring, {}, iter(range(9))))
    assert set(shown) == {""}
