"""What objects show of themselves: what a person wants, in a line or a small table."""

import dataclasses
from html.parser import HTMLParser

from jbatch import EngineConfig, RequestOutput, SamplingParams, Score, TextDelta, shown
from jbatch.engine.records import EngineStep, Progress
from jbatch.host.metrics import Summary
from jbatch.host.plan import Chunk, StepPlan
from jbatch.host.request import Request
from jbatch.outputs import CompletionOutput, FinishReason
from jbatch.seam.bucket import Bucket

IDS = list(range(1000))
MANY = "<script>alert('x')</script>&\x00" + "prompt " * 1000


def completion(**fields):
    return CompletionOutput(0, "357", IDS, FinishReason.STOP, **fields)


def output(**fields):
    return RequestOutput("a", MANY, IDS, [completion()], **fields)


class Cells(HTMLParser):
    """The texts of a table's cells; every element must be closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


def cells(shows_html):
    return Cells(shows_html._repr_html_()).cells


def test_an_output_in_two_lines():
    assert repr(output()) == (
        "RequestOutput(request_id='a', prompt=\"<script>alert('x')</script>&\\x00prompt prom ... "
        "rompt prompt prompt \", 1,000 prompt tokens, outputs=[CompletionOutput(index=0, text='357', "
        "1,000 tokens, finish_reason='stop')])"
    )
    assert "prompt_token_ids=[0, 1, 2, 3, 4, 5, ...]" in repr(dataclasses.replace(output(), prompt=None))
    assert repr(completion(stop_reason="7", cumulative_logprob=-1.23456)).endswith(
        "finish_reason='stop', stop_reason='7', cumulative_logprob=-1.235)"
    )
    many = dataclasses.replace(output(), outputs=[completion()] * 16)
    assert repr(many).count("text=") == 3 and repr(many).endswith("... 13 more])")


def test_an_error_is_shown():
    wrong = CompletionOutput(0, "", [], FinishReason.ERROR, error="no room")
    assert repr(wrong).endswith("0 tokens, finish_reason='error', error='no room')")
    assert cells(wrong)[-4:-2] == ["error", "no room"]
    refused = dataclasses.replace(output(), error="too long")
    assert repr(refused).endswith("], error='too long')") and cells(refused)[-4:-2] == ["error", "too long"]
    assert repr(Score([], [], [], None, "no room")) == "Score(error='no room')"
    assert cells(Score([], [], [], None, "no room")) == ["error", "no room"]


def test_no_list_of_ids_is_printed():
    chunk = Chunk(0, 0, tuple(IDS), 0)
    plan = StepPlan(3, Bucket(2, 1024), (1,), (1,), chunks=(chunk,))
    progress = Progress("a", 0, IDS, prompt_token_ids=tuple(IDS))
    objects = (
        output(),
        TextDelta(0, 0, "357", IDS, FinishReason.STOP, output()),
        Score(IDS, [None] * 1000, [None] * 1000, -1.5),
        EngineStep(plan, None, [progress], [output()]),
        Request("a", tuple(IDS), SamplingParams(), 5, (), 0),
    )
    for each in objects:
        assert "7, 8, 9" not in repr(each) and len(repr(each)) < 600
    assert repr(plan) == (
        "StepPlan(step_idx=3, Bucket(slots=2, tokens=1024, steps=1), seq_ids=(1,), rows=(1,), "
        "chunks=[Chunk(seq_id=0, row=0, start=0, end=1000)])"
    )


def test_options_are_those_that_were_changed():
    assert repr(SamplingParams()) == "SamplingParams()"
    assert repr(SamplingParams(temperature=0, stop="x")) == "SamplingParams(temperature=0, stop=('x',))"
    assert eval(repr(EngineConfig(max_num_seqs=3))) == EngineConfig(max_num_seqs=3)


def test_what_a_policy_sees_of_a_request():
    request = Request("a", (1, 2), SamplingParams(top_k=5), 9, (), 0, priority=-1, user="me")
    assert repr(request) == (
        "Request('a', 2 prompt tokens, max_tokens=9, SamplingParams(top_k=5), priority=-1, user='me')"
    )


def test_tables_escape_and_shorten():
    shown_cells = cells(output(num_cached_tokens=16))
    assert shown_cells[:4] == ["", "text", "", "finish_reason"]
    name, prompt, tokens, _ = shown_cells[4:8]
    assert name == "prompt" and prompt.startswith("<script>alert('x')</script>&\\x00prompt")
    assert len(prompt) < 420 and tokens == "1,000 tokens (16 cached)"
    assert shown_cells[8:] == ["sample 0", "357", "1,000 tokens", "stop"]
    assert "<script" not in output()._repr_html_() and "color" not in output()._repr_html_()


def test_a_lone_surrogate_can_be_shown():
    assert shown.escape("\ud800<\n").encode() == b"\\ud800&lt;\n"


def test_a_score_has_a_row_for_each_token():
    rows = cells(Score([5, 6], [None, -0.25], [None, 2], -0.25))
    assert rows == [
        "2 tokens, cumulative_logprob -0.25",
        "token id",
        "logprob",
        "rank",
        "5",
        "",
        "",
        "6",
        "-0.25",
        "2",
    ]
    assert cells(Score(IDS, [None] * 1000, [None] * 1000, None))[-3] == "... 968 more"


def test_a_summary_has_what_describe_says():
    summary = Summary(num_steps=12, decode_steps=11, prefill_steps=2, output_tokens=1900)
    assert repr(summary) == f"Summary({summary.describe()})"
    assert cells(summary)[2:6] == ["steps", "12: 11 decoded, 2 had prompts", "output tokens", "1,900"]
