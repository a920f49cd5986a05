"""What steps do to logits before they draw, against NumPy's own definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.draws import Drawing, Draws, sample
from jbatch.device.process import Processing, bad_words, bias, mask, penalties, process, take_in
from jbatch.device.process.user_fn import LogitsState
from jbatch.device.state import Rows
from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN
from jbatch.seam.row_data import RULED_OUT, row_data_size, unpack_row_data
from jbatch.seam.rows import RowSetup, row_columns
from jbatch.seam.step_output import Status

SLOTS, VOCAB = 4, 11


def rows_of(**fields):
    """Rows that change nothing, but for `fields`, each the same for all rows or a list of theirs."""
    given = [
        {name: value[row] if isinstance(value, list) else value for name, value in fields.items()}
        for row in range(SLOTS)
    ]
    return jnp.asarray(np.stack([row_columns(RowSetup(**one)) for one in given]))


def extra_of(**fields):
    empty = {
        "in_prompt": jnp.zeros((SLOTS, VOCAB), bool),
        "counts": jnp.zeros((SLOTS, VOCAB), jnp.int32),
        "bias": jnp.full((SLOTS, VOCAB), jnp.nan),  # stale, as all that follows
        "bad_words": jnp.zeros((SLOTS, MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), jnp.int32),
        "history": jnp.zeros((SLOTS, MAX_BAD_WORD_LEN - 1), jnp.int32),
    }
    leaves = {**empty, **{name: jnp.asarray(value) for name, value in fields.items()}}
    return {
        "bias": leaves["bias"],
        "bad_words": bad_words.BadWords(leaves["bad_words"], leaves["history"]),
        "counts": penalties.Counts(leaves["in_prompt"], leaves["counts"]),
    }


ALL_TOKENS = np.full((SLOTS, mask.num_words(VOCAB)), -1, np.int32)


def processed(logits, columns=None, extra=None, logits_fn=None, token_mask=ALL_TOKENS, run=jax.jit):
    def apply(logits, columns, extra, token_mask):
        lengths = jnp.arange(logits.shape[0])
        return process(logits, Rows(columns), lengths, extra, Processing(token_mask, logits_fn))

    columns = rows_of() if columns is None else columns
    return np.asarray(run(apply)(jnp.asarray(logits), columns, extra or extra_of(), jnp.asarray(token_mask)))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, (SLOTS, VOCAB)).astype(np.float32)


def test_rows_that_ask_for_nothing_stay_bit_for_bit(logits):
    extra = extra_of(counts=np.full((SLOTS, VOCAB), 7), in_prompt=np.ones((SLOTS, VOCAB), bool))
    np.testing.assert_array_equal(processed(logits, extra=extra), logits)


def test_penalties(logits):
    """By their definitions, each row with its own."""
    rng = np.random.default_rng(1)
    counts, in_prompt = rng.integers(0, 3, (SLOTS, VOCAB)), rng.random((SLOTS, VOCAB)) < 0.3
    repetition, presence, frequency = [1.5, 0.5, 1, 2], [0, 0.5, -1, 2], [0.3, -2, 0, 1]
    rows = rows_of(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    found = processed(logits, rows, extra_of(counts=counts, in_prompt=in_prompt))
    for slot, token in itertools.product(range(SLOTS), range(VOCAB)):
        expected = logits[slot, token]
        if in_prompt[slot, token] or counts[slot, token]:
            expected = expected / repetition[slot] if expected > 0 else expected * repetition[slot]
        expected -= frequency[slot] * counts[slot, token] + presence[slot] * (counts[slot, token] > 0)
        assert found[slot, token] == pytest.approx(expected, abs=1e-5)


def test_a_bias_counts_only_where_the_row_has_one(logits):
    bias = np.zeros((SLOTS, VOCAB), np.float32)
    bias[:, 3], bias[:, 5] = 2.5, RULED_OUT
    found = processed(logits, rows_of(has_bias=[1, 0, 1, 0]), extra_of(bias=bias))
    np.testing.assert_array_equal(found[1::2], logits[1::2])
    np.testing.assert_array_equal(found[::2, 3], logits[::2, 3] + np.float32(2.5))
    assert (found[::2, 5] == RULED_OUT).all()
    others = [token for token in range(VOCAB) if token not in (3, 5)]
    np.testing.assert_array_equal(found[:, others], logits[:, others])


def words_table(*words):
    table = np.full((MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), -1)
    for idx, word in enumerate(words):
        table[idx, MAX_BAD_WORD_LEN - len(word) :] = word
    return table


@pytest.mark.parametrize(
    ("history", "banned"),
    [
        ((), {4}),
        ((1,), {4, 2}),
        ((9, 1), {4, 2}),
        ((2, 1, 3), {4, 5}),
        ((1, 3, 3), {4}),
        ((3, 5, 6, 7, 8, 9, 10), {4, 0}),
        ((2, 5, 6, 7, 8, 9, 10), {4}),
    ],
)
def test_bad_words(logits, history, banned):
    """The last token of each word whose others stand at the end; rows without any have stale tables."""
    words = words_table([4], [1, 2], [1, 3, 5], [3, 5, 6, 7, 8, 9, 10, 0])
    padded = [-1] * (MAX_BAD_WORD_LEN - 1 - len(history)) + list(history)
    extra = extra_of(bad_words=[words] * SLOTS, history=[padded] * SLOTS)
    found = processed(logits, rows_of(has_bad_words=[0, 1, 0, 1]), extra)
    assert {int(token) for token in np.flatnonzero(found[1] == RULED_OUT)} == banned
    np.testing.assert_array_equal(found[::2], logits[::2])


def test_what_is_ruled_out_stays_so(logits):
    """Whatever biases, penalties and the user's function add to it; and it stays finite."""
    bias = np.full((SLOTS, VOCAB), RULED_OUT, np.float32)
    bias[:, 0] = 100
    everywhere = np.full((SLOTS, VOCAB), 9)
    rows = rows_of(
        has_bias=1, repetition_penalty=[0.01, 100, 1, 1], presence_penalty=-2, frequency_penalty=[-2, 2, 0, 0]
    )
    extra = extra_of(bias=bias, counts=everywhere)
    for function in (None, lambda x, state: x + 1e38, lambda x, state: x * 1e-30, lambda x, state: 0 * x + 5):
        found = processed(logits, rows, extra, function)
        assert (found[:, 1:] == RULED_OUT).all() and (found[:, 0] > RULED_OUT / 2).all()


def test_the_users_function_sees_its_rows(logits):
    rng = np.random.default_rng(1)
    counts, in_prompt = rng.integers(0, 3, (SLOTS, VOCAB)), rng.random((SLOTS, VOCAB)) < 0.3
    rows = rows_of(
        last_token=[4, 3, 2, 1], prompt_len=[7, 8, 9, 1], temperature=[0, 1, 2, 3], seed=[2**32 - 1, 0, 1, 2],
        sample_idx=[0, 1, 0, 2], request_idx=[5, 2**31 - 1, 0, 5],
    )  # fmt: skip
    seen = []

    def function(x, state):
        seen.append((x, state))
        return x.at[:, 2].set(-jnp.inf).at[jnp.arange(SLOTS), state.last_token].add(10.0)

    extra = extra_of(counts=counts, in_prompt=in_prompt)
    found = processed(logits, rows, extra, function, run=lambda apply: apply)
    ((x, state),) = seen
    np.testing.assert_array_equal(x, logits)
    expected = LogitsState(
        last_token=[4, 3, 2, 1], length=[0, 1, 2, 3], prompt_len=[7, 8, 9, 1], in_prompt=in_prompt,
        counts=counts, temperature=[0, 1, 2, 3], seed=[-1, 0, 1, 2], sample_idx=[0, 1, 0, 2],
            request_idx=[5, 2**31 - 1, 0, 5],
    )  # fmt: skip
    for name in LogitsState._fields:
        np.testing.assert_array_equal(getattr(state, name), getattr(expected, name))
    assert (found[:, 2] == RULED_OUT).all()
    assert found[0, 4] == logits[0, 4] + np.float32(10)


@pytest.mark.parametrize("vocab", [11, 32, 70])
def test_a_mask_rules_out_all_but_its_bits(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 1, (SLOTS, vocab)).astype(np.float32)
    allowed = rng.random((SLOTS, vocab)) < 0.5
    bits = np.zeros((SLOTS, mask.num_words(vocab) * 32), bool)
    bits[:, :vocab] = allowed
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    masked = np.asarray(jax.jit(mask.rule_out)(jnp.asarray(logits), jnp.asarray(words)))
    np.testing.assert_array_equal(masked, np.where(allowed, logits, np.float32(RULED_OUT)))


def test_a_mask_is_a_part_of_the_whole(logits):
    words = np.full((SLOTS, 1), 0b1000, np.int32)
    masked = processed(logits, token_mask=words)
    np.testing.assert_array_equal(masked[:, 3], logits[:, 3])
    assert (np.delete(masked, 3, axis=1) == RULED_OUT).all()


def test_ends_that_only_processing_steps_know(logits):
    """Nothing left, a NaN of the model's, one of the function's, and a row that goes on."""
    logits[1, 5] = np.nan
    columns = jnp.asarray([row_columns(RowSetup(budget=5, has_bias=slot == 0)) for slot in range(SLOTS)])
    bias_rows = np.full((SLOTS, VOCAB), RULED_OUT, np.float32)

    def function(x, state):
        return jnp.where((jnp.arange(SLOTS) == 2)[:, None], jnp.nan, x)

    rows = jnp.arange(SLOTS)
    draws = Draws(None, rows, columns, jnp.full(SLOTS, 3), jnp.asarray([True] * SLOTS), rows)
    drawing, all_tokens = Drawing(Sampler.PROCESSED, function), jnp.asarray(ALL_TOKENS)
    sampled = sample(jnp.asarray(logits), draws, extra_of(bias=bias_rows), all_tokens, drawing)
    ends = [Status.NOTHING_LEFT, Status.NON_FINITE, Status.NON_FINITE, Status.RUNNING]
    assert sampled.status.tolist() == ends and sampled.num_tokens.tolist() == [0, 0, 0, 1]
    assert Rows(sampled.columns)["finished"].tolist() == [1, 1, 1, 0]


# The state of features: a row's data is put in place, and what is drawn is taken in.


def packed(feature, row, *arrays):
    data = np.zeros(row_data_size(feature, VOCAB), np.int32)
    packed_row, *places = unpack_row_data(data, feature, VOCAB)
    packed_row[...] = row
    for place, array in zip(places, arrays, strict=True):
        place[...] = array
    return jnp.asarray(data)


def test_row_data_replaces_one_row_whole_and_leaves_the_others():
    stale = extra_of(counts=np.ones((SLOTS, VOCAB)), in_prompt=np.ones((SLOTS, VOCAB), bool))
    counts = np.zeros(VOCAB, np.int32)
    counts[[3, 5]] = 1, 6  # 3 is in the prompt; the output has 5 three times
    state = penalties.set_row(stale["counts"], packed("counts", 1, counts))
    assert np.flatnonzero(state.in_prompt[1]).tolist() == [3]
    assert np.flatnonzero(state.in_output[1]).tolist() == [5] and state.in_output[1, 5] == 3
    for row in (0, 2, 3):
        assert state.in_prompt[row].all() and (state.in_output[row] == 1).all()
    biases = bias.set_row(stale["bias"], packed("bias", 2, np.float32([0.5] * VOCAB).view(np.int32)))
    assert (biases[2] == 0.5).all() and np.isnan(biases[jnp.asarray([0, 1, 3])]).all()


@pytest.mark.parametrize("feature, module", [("bias", bias), ("counts", penalties), ("bad_words", bad_words)])
def test_row_data_of_no_row_is_dropped(feature, module):
    state = module.abstract(SLOTS, VOCAB)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    data = jnp.full(row_data_size(feature, VOCAB), SLOTS, jnp.int32)
    for leaf in jax.tree.leaves(module.set_row(zeros, data)):
        assert not leaf.any()


def test_what_is_drawn_is_taken_in_where_a_row_drew():
    extra = extra_of(history=[[row] * (MAX_BAD_WORD_LEN - 1) for row in range(SLOTS)])
    drawn = jnp.asarray([True, False, True])
    extra = take_in(extra, jnp.asarray([2, 1, 0]), jnp.asarray([7, 8, 9]), drawn)
    counts = np.asarray(extra["counts"].in_output)
    assert (counts[2, 7], counts[0, 9], counts.sum()) == (1, 1, 2)
    assert extra["bad_words"].history[:, -2:].tolist() == [[0, 9], [1, 1], [2, 7], [3, 3]]
    assert not extra["counts"].in_prompt.any()
