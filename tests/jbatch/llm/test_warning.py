"""What a call of `generate` warns of, once, at the line that called it."""

import asyncio
import warnings

import pytest

from jbatch import SamplingParams
from jbatch.engine.prompts import list_requests
from jbatch.errors import OutputWarning
from jbatch.llm.warning import CUT_OFF, warn_of
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput
from tests.helpers.small_llm import GREEDY

STOP, LENGTH, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR


def warned(reasons, params=None, error="no room"):
    """What is warned of outputs that ended so, one for each prompt."""
    requests = list_requests([[1]] * len(reasons), params or SamplingParams(), {}, iter(range(99)))
    outputs = [
        RequestOutput(
            str(idx),
            None,
            [1],
            [CompletionOutput(0, "", [], reason)],
            error=error if reason is ERROR else None,
        )
        for idx, reason in enumerate(reasons)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of(requests, outputs, stacklevel=1)
    return [str(each.message) for each in caught]


def test_failed_prompts_are_counted_and_the_first_is_named():
    assert warned([STOP, ERROR, ERROR]) == ["2 of 3 prompts failed; first: prompt 1: no room"]
    assert warned([ERROR]) == ["1 of 1 prompt failed; first: prompt 0: no room"]
    assert warned([STOP, STOP]) == warned([]) == []


@pytest.mark.parametrize(
    "reasons, expected",
    [
        ([LENGTH, LENGTH, STOP], [CUT_OFF]),
        ([LENGTH, STOP], []),  # half of them
        ([LENGTH, ERROR], ["1 of 2 prompts failed; first: prompt 1: no room", CUT_OFF]),
    ],
)
def test_more_than_half_cut_off(reasons, expected):
    assert warned(reasons) == expected


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"max_tokens": 1}, {"max_tokens": 0}])
def test_who_asked_for_a_number_of_tokens_is_not_warned(options):
    assert warned([LENGTH, LENGTH], SamplingParams(**options)) == []


def test_a_warning_names_the_callers_line(llm):
    with pytest.warns(
        OutputWarning, match=r"1 of 2 prompts failed; first: prompt 1: prompt_token_ids=96"
    ) as seen:
        llm.generate([[1, 2], [96]], GREEDY)
    with pytest.warns(OutputWarning, match="1 of 1 prompt failed") as scored:
        llm.score([[96]])
    assert seen[0].filename == scored[0].filename == __file__


def test_agenerate_warns_where_it_is_awaited(llm):
    async def call():
        return await llm.agenerate([[1, 2], [96]], GREEDY)

    with pytest.warns(OutputWarning, match="1 of 2 prompts failed; first: prompt 1") as seen:
        asyncio.run(call())
    line = call.__code__.co_firstlineno + 1
    assert (seen[0].filename, seen[0].lineno) == (__file__, line)
