"""Log-probabilities as users read them, from made-up steps."""

import tracemalloc

import numpy as np
import pytest

from jbatch.engine.logprobs import less_special, logprob_list, no_text, take_in, token_decoder
from jbatch.errors import RequestError
from jbatch.host.plan import Chunk, Draw, StepPlan
from jbatch.host.request import Request
from jbatch.outputs import Logprob
from jbatch.sampling_params import MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS, SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.step_output import Logprobs, StepOutput
from tests.helpers.tokenizers import byte_level, numbered, wrapped


def found_at(num, token_rank=3, num_top=MAX_LOGPROBS):
    """Position i: its token has -i - 0.5; the likeliest are 10, 11, ... with -0, -1, ... and so on."""
    place = np.arange(MAX_LOGPROBS)
    ids = np.where(place < num_top, 10 + place, -1)
    return Logprobs(
        logprob=np.float32(-np.arange(num) - 0.5),
        rank=np.full(num, token_rank, np.int32),
        top_ids=np.tile(ids, (num, 1)).astype(np.int32),
        top_logprobs=np.tile(-place, (num, 1)).astype(np.float32),
        by_id=np.tile(-100 - np.arange(MAX_LOGPROB_TOKEN_IDS), (num, 1)).astype(np.float32),
    )


def listed(prompt=(5, 6, 7), sample_idx=0, **params):
    return logprob_list(Request("r", prompt, SamplingParams(**params), 10, (), 0, sample_idx=sample_idx))


def test_who_asks_for_none_has_none():
    assert listed() is None and listed(presence_penalty=1) is None
    assert listed(prompt_logprobs=0).output(0, no_text) == (None, None)
    assert listed(logprobs=0).prompt(no_text) is None
    assert listed(prompt_logprobs=1, sample_idx=1).prompt(no_text) is None, "sample 0 has the request's"


@pytest.mark.parametrize(
    ("num_top", "entry"),
    [
        (0, {11: (-1.5, 3)}),
        (1, {11: (-1.5, 3), 10: (0, 1)}),
        (3, {11: (-1.5, 3), 10: (0, 1), 12: (-2, 3)}),
    ],
)
def test_a_token_comes_first_and_the_likeliest_follow(num_top, entry):
    one = listed(logprobs=num_top)
    one.add_token(11, found_at(2), 1)
    entries, total = one.output(1, no_text)
    assert entries == [{token: Logprob(*pair) for token, pair in entry.items()}] and total == -1.5
    assert list(entries[0]) == list(entry)


def test_ids_that_are_named_follow_with_a_rank_where_one_is_known():
    one = listed(logprob_token_ids=[3, 12, 11])
    one.add_token(11, found_at(1), 0)
    (entry,), _ = one.output(1, no_text)
    assert entry == {11: Logprob(-0.5, 3), 3: Logprob(-100, None), 12: Logprob(-101, 3)}


def test_a_vocabulary_smaller_than_what_is_asked_for():
    one = listed(logprobs=20)
    one.add_token(11, found_at(1, num_top=2), 0)
    assert set(one.output(1, no_text)[0][0]) == {10, 11}


def test_tokens_that_the_output_does_not_have_are_left_out():
    one = listed(logprobs=0)
    for slot in range(3):
        one.add_token(30 + slot, found_at(3), slot)
    entries, total = one.output(2, no_text)
    assert [list(entry) for entry in entries] == [[30], [31]] and total == -2.0


def draw(seq_id, offset=0):
    return Draw(seq_id, 0, offset, None)


def output_of(tokens, counts, num_tokens):
    """Draw i has -i - 0.5, and so has place i."""
    num = len(tokens)
    columns = np.array(tokens).reshape(num, -1), np.array(counts), np.zeros(num)
    return StepOutput(*columns, found_at(num), found_at(num_tokens) if num_tokens else None)


def test_steps_of_several_chunks():
    """Chunks begin at multiples of 8 of the token axis; each target goes to the position behind its own."""
    chunks = (
        Chunk(7, 0, (1, 2, 3), 0, targets=(2, 3, 4)),
        Chunk(8, 1, (5,), 4),
        Chunk(9, 2, (6, 7, 8), 1, draws=(draw(9, 2),), targets=(-1, 8)),
    )
    plan = StepPlan(0, prefill_bucket(48), chunks=chunks)
    lists = {
        7: listed(tuple(range(1, 10)), prompt_logprobs=0),
        9: listed((5, 6, 7, 8), prompt_logprobs=0, logprobs=0),
    }
    take_in(plan, output_of([42, 0, 0], [1, 0, 0], 48), lists.get)
    first, second = lists[7].prompt(no_text), lists[9].prompt(no_text)
    assert first == [None, *[{2 + i: Logprob(-i - 0.5, 3)} for i in range(3)], *[None] * 5]
    assert second == [None, None, None, {8: Logprob(-17.5, 3)}]
    assert lists[9].output(1, no_text) == ([{42: Logprob(-0.5, 3)}], -0.5)


def test_draws_of_slots_come_first_and_those_of_chunks_behind_all_slots():
    """Two of four slots are used; a chunk draws for two samples, the next for none, the last for one. Only
    the first sample's list has the prompt, whose places are counted without the slots."""
    chunks = (
        Chunk(3, 0, (5, 6), 0, draws=(draw(3, 1), draw(4, 1)), targets=(6, 7)),
        Chunk(5, 0, (5,), 0),
        Chunk(6, 0, (6, 7), 1, draws=(draw(6, 1),), targets=(7,)),
    )
    plan = StepPlan(0, Bucket(4, 48), (1, 2), (0, 1), chunks=chunks)
    lists = {seq_id: listed(logprobs=0, prompt_logprobs=0) for seq_id in (1, 2, 3, 5, 6)}
    lists[4] = listed(logprobs=0, prompt_logprobs=0, sample_idx=1)
    tokens, counts = [31, 32, 0, 0, 33, 34, 36], [1, 0, 0, 0, 1, 1, 1]
    take_in(plan, output_of(tokens, counts, 48), lists.get)
    drawn = {seq_id: one.output(1, no_text)[0] for seq_id, one in lists.items()}
    assert drawn == {
        1: [{31: Logprob(-0.5, 3)}], 2: [], 3: [{33: Logprob(-4.5, 3)}], 4: [{34: Logprob(-5.5, 3)}], 5: [],
        6: [{36: Logprob(-6.5, 3)}],
    }  # fmt: skip
    assert lists[3].prompt(no_text) == [None, {6: Logprob(-0.5, 3)}, {7: Logprob(-1.5, 3)}]
    assert lists[6].prompt(no_text) == [None, None, {7: Logprob(-16.5, 3)}]
    assert lists[4].prompt(no_text) is None and lists[1].prompt(no_text) == [None] * 3


def test_a_sequence_that_ended_meanwhile_has_no_list():
    chunks = (Chunk(2, 0, (5, 6), 0, draws=(draw(2, 1), draw(3, 1)), targets=(6, 7)),)
    plan = StepPlan(0, Bucket(1, 32), (1,), (0,), chunks=chunks)
    lists = {3: listed(logprobs=0)}
    take_in(plan, output_of([31, 32, 33], [1, 1, 1], 32), lists.get)
    assert lists[3].output(1, no_text) == ([{33: Logprob(-2.5, 3)}], -2.5)


@pytest.mark.parametrize(
    ("broken", "position"),
    [((), None), ((0,), 1), ((1,), 2), ((0, 1), 1), ((2, 5), None)],  # no target is at 2 and at 5
)
def test_a_scored_prompt_whose_logits_are_not_finite(broken, position):
    """The first such position is the error; the sequence's other places stay as they are."""
    one = listed((5, 6, 7), prompt_logprobs=0, logprobs=0)
    plan = StepPlan(0, prefill_bucket(16), chunks=(Chunk(1, 0, (5, 6), 0, targets=(6, 7)),))
    output = output_of([0], [0], 16)
    output.prompt_logprobs.logprob[list(broken)] = np.nan
    take_in(plan, output, {1: one}.get)
    if position is None:
        assert one.error is None
    else:
        assert one.error.startswith(f"logits are not finite at position {position};")
        assert "bfloat16" in one.error


def test_a_prompt_that_broke_in_an_earlier_chunk_stays_so():
    one, found = listed((5, 6, 7), prompt_logprobs=0), found_at(2)
    found.logprob[0] = np.nan
    one.add_targets((6,), 0, found, 0)
    one.add_targets((7,), 1, found_at(2), 0)
    assert "at position 1;" in one.error


def test_a_token_that_broke_is_no_error_of_the_list():
    """Its draw has a status for that."""
    one, found = listed(logprobs=0), found_at(1)
    found.logprob[0] = np.nan
    one.add_token(11, found, 0)
    assert one.error is None


def test_a_step_without_logprobs_is_nobodys():
    plan = StepPlan(0, decode_bucket(1), (7,), (0,))
    take_in(plan, StepOutput(np.zeros((1, 1)), np.ones(1), np.zeros(1)), {}.__getitem__)


def test_memory_per_position():
    one, found = listed(prompt=(5,) * 1000, logprobs=20, prompt_logprobs=20), found_at(1)
    tracemalloc.start()
    for position in range(999):
        one.add_token(11, found, 0)
        one.add_targets((6,), position, found, 0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 1998 < 220
    assert [len(entry) for entry in one.output(999, no_text)[0]] == [20] * 999
    assert one.prompt(no_text)[999][6] == Logprob(-0.5, 3)


def test_texts():
    decode = token_decoder(wrapped(numbered()))
    one = listed(logprobs=1, prompt_logprobs=1)
    one.add_token(11, found_at(1), 0)
    one.add_targets((6,), 0, found_at(1), 0)
    (entry,), _ = one.output(1, decode)
    assert list(entry.values()) == [Logprob(-0.5, 3, "11.", b"11."), Logprob(0, 1, "10.", b"10.")]
    assert one.prompt(decode)[1][6].decoded_token == "06."
    assert token_decoder(None)(3) == no_text(3) == (None, None, False)


def test_special_tokens_that_are_left_out_add_no_bytes():
    decode = token_decoder(wrapped(byte_level()))
    assert decode(257) == ("</s>", b"</s>", True) and less_special(decode)(257)[:2] == ("</s>", None)
    assert less_special(decode)(66) == decode(66)


def test_a_decoder_that_fails_leaves_the_texts_out():
    class Broken:
        def token_text(self, token_id):
            raise RequestError("token_ids", [token_id], "cannot be decoded")

    assert token_decoder(Broken())(3) == no_text(3)
