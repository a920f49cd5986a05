"""What a step does with a sequence: how its row begins, and which of its tokens are drawn from and scored."""

import numpy as np
import pytest

from jbatch.host.plan import Draw, chunk_of, row_setup
from jbatch.host.request import Sequence
from jbatch.seam.rows import RowSetup
from tests.helpers.schedules import request


def sequence_of(asked, *output, row=2, **fields):
    """A running one that has these tokens so far."""
    token_ids = [*asked.prompt_token_ids, *output]
    return Sequence(4, asked, token_ids, num_planned=len(token_ids), row=row, **fields)


def test_row_setup_of_a_new_and_of_a_preempted_sequence():
    asked = request([5, 6, 7], 10, stop_ids=(2,), min_tokens=3, temperature=0.5, seed=77)
    sequence = sequence_of(asked)
    expected = RowSetup(
        length=3, budget=10, min_left=3, seed=77, temperature=0.5, prompt_len=3, stop_ids=(2,)
    )
    assert row_setup(sequence) == expected
    sequence.token_ids += [8, 9]
    assert row_setup(sequence) == expected._replace(length=5, budget=8, min_left=1)
    sequence.token_ids += [8, 9]
    assert row_setup(sequence) == expected._replace(length=7, budget=6, min_left=0)


def test_row_setup_resolves_what_means_off():
    tiny = sequence_of(request([1], 1, temperature=1e-6))
    assert row_setup(tiny).temperature == 0.0
    assert row_setup(tiny).top_k == 0


@pytest.mark.parametrize("top_p", [1e-39, 1e-300])
def test_a_top_p_that_float32_cannot_hold_stays_above_zero(top_p):
    assert row_setup(sequence_of(request([1], 1, top_p=top_p))).top_p == np.finfo(np.float32).tiny


# Chunks.

PROMPT = [11, 12, 13, 14, 15]


def test_a_prompt_in_chunks_draws_once_from_its_last_token():
    sequence = sequence_of(request(PROMPT, 3))
    first, last = chunk_of(sequence, 0, 3), chunk_of(sequence, 3, 5)
    assert (first.seq_id, first.row, first.token_ids, first.start, first.end) == (4, 2, (11, 12, 13), 0, 3)
    assert (last.token_ids, last.start, last.end) == ((14, 15), 3, 5)
    assert first.draws == () and last.draws == (Draw(4, 2, 1, row_setup(sequence)),)
    assert (first.num_recomputed, first.attempt, first.targets) == (0, 0, ())


def test_a_sequence_that_only_scores_its_prompt_has_no_draw():
    sequence = sequence_of(request(PROMPT, 0, prompt_logprobs=0))
    chunk = chunk_of(sequence, 0, 5)
    assert chunk.draws == () and chunk.targets == (12, 13, 14, 15) and chunk.end == sequence.max_len


def test_a_preempted_sequence_is_computed_again_and_draws_from_its_output():
    """It had seven tokens, six of them cached; its prompt was scored."""
    asked = request(PROMPT, 9, prompt_logprobs=0)
    sequence = sequence_of(asked, 21, 22, num_computed=6, num_scored=6, num_preemptions=3)
    first, last = chunk_of(sequence, 0, 4), chunk_of(sequence, 4, 7)
    assert (first.token_ids, first.num_recomputed, first.draws) == ((11, 12, 13, 14), 4, ())
    assert (last.token_ids, last.num_recomputed) == ((15, 21, 22), 2)
    assert last.draws == (Draw(4, 2, 2, row_setup(sequence)),) and row_setup(sequence).budget == 7
    assert first.attempt == last.attempt == 3 and first.targets == last.targets == ()


@pytest.mark.parametrize(
    ("start", "end", "num_scored", "targets"),
    [
        (0, 5, 0, (12, 13, 14, 15)),  # nothing follows the last one in the prompt
        (0, 4, 0, (12, 13, 14, 15)),
        (1, 3, 0, (13, 14)),
        (4, 5, 0, ()),
        (2, 7, 0, (14, 15)),  # the output is no part of the prompt
        (5, 7, 0, ()),
        (0, 5, 2, (-1, -1, 14, 15)),  # scored before a preemption
        (1, 5, 2, (-1, 14, 15)),
        (3, 5, 2, (15,)),
        (0, 2, 2, ()),
        (0, 5, 4, ()),
    ],
)
def test_targets_are_the_next_tokens_of_the_prompt(start, end, num_scored, targets):
    asked = request(PROMPT, 9, prompt_logprobs=3)
    sequence = sequence_of(asked, 21, 22, num_computed=4, num_scored=num_scored)
    assert chunk_of(sequence, start, end).targets == targets


def test_a_prompt_is_scored_where_that_is_asked_for_and_once_for_all_samples():
    asked = request(PROMPT, 9, prompt_logprobs=3, sample_idx=1)
    assert chunk_of(sequence_of(asked), 0, 5).targets == ()
    assert chunk_of(sequence_of(request(PROMPT, 9)), 0, 5).targets == ()


def test_prompt_tokens_before_the_first_one_asked_about_are_not_scored():
    asked = request([5, 6, 7, 8, 9], 0, prompt_logprobs=0, first_scored=3)
    sequence = sequence_of(asked)
    assert chunk_of(sequence, 0, 5).targets == (-1, -1, 8, 9)
    assert chunk_of(sequence, 0, 2).targets == () and chunk_of(sequence, 2, 5).targets == (8, 9)
    assert (asked.num_readable, request([5, 6], 0, prompt_logprobs=0).num_readable) == (2, 0)
