"""Scores from outputs, and of a tiny model: what it generated has the log-probabilities it had then."""

import math
import random

import pytest

from jbatch import LLM, SamplingParams
from jbatch.engine.scoring import Score, score_of
from jbatch.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from tests.helpers.hf_checkpoint import write_checkpoint
from tests.helpers.small_llm import SMALL
from tests.helpers.tokenizers import numbered, save

ENDED = [CompletionOutput(0, "", [], FinishReason.LENGTH)]


def output(token_ids, prompt_logprobs, error=None):
    return RequestOutput("r", None, token_ids, ENDED, error=error, prompt_logprobs=prompt_logprobs)


def test_a_score_is_of_the_prompts_own_tokens():
    entries = [None, {4: Logprob(-0.1, 1), 6: Logprob(-2.0, 3)}, {4: Logprob(-0.5, 1)}]
    entries[1] = {6: Logprob(-2.0, 3), 4: Logprob(-0.1, 1)}
    assert score_of(output([5, 6, 4], entries)) == Score([5, 6, 4], [None, -2.0, -0.5], [None, 3, 1], -2.5)
    assert score_of(output([5], [None])) == Score([5], [None], [None], 0)


@pytest.mark.parametrize(
    "of, error",
    [
        (output([5, 6], [None, {6: Logprob(-1.0, 2)}], "it failed"), "it failed"),
        (output([5, 6], None), "no log-probabilities"),
        (output([5, 6], [None, None]), "not computed to its end"),
        (output([5, 6], [None, {6: Logprob(math.nan, 1)}]), "not a number"),
    ],
)
def test_what_failed_has_no_numbers(of, error):
    score = score_of(of)
    assert error in score.error and score.cumulative_logprob is None
    assert score.token_ids == score.logprobs == score.ranks == []


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    with LLM(path, samplers=("extended",), **SMALL) as llm:
        yield llm


def test_scores_of_what_was_generated(llm):
    """Longer than a prefill bucket, so that tokens and the tokens they predict fall into different chunks."""
    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=0)
    drawn = SamplingParams(temperature=1.5, max_tokens=70, ignore_eos=True, logprobs=0, seed=4)
    outputs = llm.generate([[5, 6], [7, 8, 9]], [greedy, drawn])
    whole = [out.prompt_token_ids + out.outputs[0].token_ids for out in outputs]
    scores = llm.score(whole)
    for out, token_ids, score in zip(outputs, whole, scores, strict=True):
        num_prompt = len(out.prompt_token_ids)
        assert score.token_ids == token_ids and score.error is None
        assert len(score.logprobs) == len(score.ranks) == len(token_ids) and score.logprobs[0] is None
        known = [next(iter(entry.values())) for entry in out.outputs[0].logprobs]
        assert score.logprobs[num_prompt:] == pytest.approx([entry.logprob for entry in known], abs=1e-4)
        assert score.cumulative_logprob == pytest.approx(sum(score.logprobs[1:]))
    assert set(scores[0].ranks[2:]) == {1} and set(scores[1].ranks[3:]) > {1}
    assert not llm.engine.has_unfinished and llm.engine.scheduler.pool.num_used == 0


def test_scores_of_text_and_of_what_is_refused(llm):
    text, ids, empty, unknown, one, full = llm.score(["05.06.", [5, 6], [], [96], [5], [1] * 96])
    assert text == ids and len(text.logprobs) == 2
    assert "at least one token" in empty.error and "vocabulary" in unknown.error
    assert one == Score([5], [None], [None], 0)
    assert full.error is None and len(full.ranks) == 96
    assert llm.score("05.06.") == [text] and llm.score([]) == []


def test_what_is_not_asked_about_may_come_from_the_cache(llm):
    """As four continuations of each context: computed once, and scored as without the cache."""
    rng = random.Random(4)
    contexts = [rng.choices(range(96), k=n) for n in (16, 17, 40)]
    prompts = [context + rng.choices(range(96), k=n) for n in (1, 3, 9) for context in contexts]
    firsts = [len(context) for context in contexts] * 3
    assert llm.reset_prefix_cache()
    whole = llm.score(prompts, use_tqdm=False)
    assert llm.engine.summary.found == 0, "all is computed"
    assert llm.reset_prefix_cache()
    for turn in range(3):
        of_turn = slice(3 * turn, 3 * turn + 3)
        scores = llm.score(prompts[of_turn], first_scored=firsts[of_turn], use_tqdm=False)
        for score, expected, first in zip(scores, whole[of_turn], firsts[of_turn], strict=True):
            assert score.error is None and score.logprobs[:first] == score.ranks[:first] == [None] * first
            assert score.logprobs[first:] == pytest.approx(expected.logprobs[first:], abs=1e-5)
            assert score.ranks[first:] == expected.ranks[first:]
            assert score.cumulative_logprob == pytest.approx(sum(expected.logprobs[first:]), abs=1e-4)
        found = llm.engine.summary.found
        assert found == turn * (0 + 16 + 32), (
            "a context of 16 tokens: its last one gives logits that are asked for"
        )


def test_first_scored_is_checked(llm):
    with pytest.raises(ValueError, match="2 of first_scored for 1 prompts: give one for each"):
        llm.score([[5, 6]], first_scored=[0, 1])
    (score,) = llm.score([[5, 6]], first_scored=[3], use_tqdm=False)
    assert "first_scored=3: must be" in score.error
    (score,) = llm.score([[5, 6]], first_scored=[2], use_tqdm=False)
    assert score.logprobs == [None, None] and score.cumulative_logprob == 0
