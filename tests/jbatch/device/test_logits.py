"""What EXTENDED steps do to logits, against NumPy's own definitions, and what they report."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.logits import LogitsState, check_logits_fn, largest, process, report, report_targets
from jbatch.device.state import ExtraState, read_rows
from jbatch.device.step import sample
from jbatch.errors import ConfigError
from jbatch.host.plan import RowSetup, Status, row_columns
from jbatch.host.row_data import RULED_OUT
from jbatch.sampling_params import (
    MAX_BAD_WORD_IDS,
    MAX_BAD_WORD_LEN,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_LOGPROBS,
    MAX_STOP_IDS,
    Sampler,
)

SLOTS, VOCAB = 4, 11


def rows_of(slots=SLOTS, **fields):
    """Rows that change nothing, but for `fields`."""
    fields = {**RowSetup()._asdict(), "stop_ids": -1, **fields}
    shapes = {name: (slots, MAX_STOP_IDS) if name == "stop_ids" else (slots,) for name in fields}
    floats = ("temperature", "top_p", "min_p")
    return RowSetup(
        **{
            name: jnp.broadcast_to(
                jnp.asarray(value, jnp.float32 if name in floats or "penalty" in name else jnp.int32),
                shapes[name],
            )
            for name, value in fields.items()
        }
    )


def extra_of(slots=SLOTS, vocab=VOCAB, **fields):
    empty = {
        "in_prompt": jnp.zeros((slots, vocab), bool),
        "counts": jnp.zeros((slots, vocab), jnp.int32),
        "bias": jnp.full((slots, vocab), jnp.nan),  # stale, as all that follows
        "bad_words": jnp.zeros((slots, MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), jnp.int32),
        "history": jnp.zeros((slots, MAX_BAD_WORD_LEN - 1), jnp.int32),
        "logprob_ids": jnp.zeros((slots, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
    }
    return ExtraState(**{**empty, **{name: jnp.asarray(value) for name, value in fields.items()}})


_process = jax.jit(process, static_argnums=4)


def processed(logits, rows=None, extra=None, logits_fn=None, run=_process):
    lengths = jnp.arange(logits.shape[0])
    return np.asarray(run(jnp.asarray(logits), rows or rows_of(), lengths, extra or extra_of(), logits_fn))


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
        last_token=[4, 3, 2, 1], prompt_len=[7, 8, 9, 1], temperature=[0, 1, 2, 3], seed=[-1, 0, 1, 2],
        sample_idx=[0, 1, 0, 2],
    )  # fmt: skip
    seen = []

    def function(x, state):
        seen.append((x, state))
        return x.at[:, 2].set(-jnp.inf).at[jnp.arange(SLOTS), state.last_token].add(10.0)

    found = processed(logits, rows, extra_of(counts=counts, in_prompt=in_prompt), function, process)
    ((x, state),) = seen
    np.testing.assert_array_equal(x, logits)
    expected = LogitsState(
        last_token=[4, 3, 2, 1], length=[0, 1, 2, 3], prompt_len=[7, 8, 9, 1], in_prompt=in_prompt,
        counts=counts, temperature=[0, 1, 2, 3], seed=[-1, 0, 1, 2], sample_idx=[0, 1, 0, 2],
    )  # fmt: skip
    for name in LogitsState._fields:
        np.testing.assert_array_equal(getattr(state, name), getattr(expected, name))
    assert (found[:, 2] == RULED_OUT).all()
    assert found[0, 4] == logits[0, 4] + np.float32(10)


def test_ends_that_only_extended_steps_know(logits):
    """Nothing left, a NaN of the model's, one of the function's, and a row that goes on."""
    logits[1, 5] = np.nan
    columns = jnp.asarray([row_columns(RowSetup(budget=5, has_bias=slot == 0)) for slot in range(SLOTS)])
    bias = np.full((SLOTS, VOCAB), RULED_OUT, np.float32)

    def function(x, state):
        return jnp.where((jnp.arange(SLOTS) == 2)[:, None], jnp.nan, x)

    def process_rows(x, rows):
        return process(x, rows, jnp.zeros(SLOTS, jnp.int32), extra_of(bias=bias), function)

    sampled = sample(
        jnp.asarray(logits), columns, jnp.full(SLOTS, 3), jnp.asarray([True] * SLOTS),
        sampler=Sampler.EXTENDED, process=process_rows,
    )  # fmt: skip
    ends = [Status.NOTHING_LEFT, Status.NON_FINITE, Status.NON_FINITE, Status.RUNNING]
    assert sampled.status.tolist() == ends and sampled.num_tokens.tolist() == [0, 0, 0, 1]
    assert read_rows(sampled.columns).finished.tolist() == [1, 1, 1, 0]


# The user's function is checked before a model is loaded.


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x, "cannot be traced for 3 slots: TypeError"),
        (lambda x, state: x[:, :-1], r"must return float32\[3, 11\], not float32\[3, 10\]"),
        (lambda x, state: x.astype(jnp.bfloat16), r"not bfloat16\[3, 11\]"),
        (lambda x, state: (x, x), "not tuple"),
        (lambda x, state: None, "not NoneType"),
        (lambda x, state: x if x[0, 0] > 0 else -x, "TracerBoolConversionError"),
        (lambda x, state: x + state.colour, "no attribute 'colour'"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(function, says):
    with pytest.raises(ConfigError, match=says) as error:
        check_logits_fn(function, 3, VOCAB)
    assert error.value.field == "logits_fn"


def test_a_function_that_fits():
    check_logits_fn(lambda x, state: x - state.counts * (x > 0), 3, VOCAB)


# Reports.


def reference(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("vocab", [5, 20, 300, 32_000])
def test_report(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 4, (6, vocab)).astype(np.float32)
    tokens, ids = rng.integers(0, vocab, 6), rng.integers(0, vocab, (6, 3))
    found = jax.tree.map(np.asarray, jax.jit(report)(logits, jnp.asarray(tokens), jnp.asarray(ids)))
    expected = reference(logits)
    of_token = expected[np.arange(6), tokens]
    np.testing.assert_allclose(found.logprob, of_token, atol=1e-5)
    np.testing.assert_array_equal(found.rank, 1 + (logits > logits[np.arange(6), tokens][:, None]).sum(-1))
    num_top = min(MAX_LOGPROBS, vocab)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :num_top]
    np.testing.assert_array_equal(found.top_ids[:, :num_top], order)
    assert found.top_ids.shape == (6, MAX_LOGPROBS) and (found.top_ids[:, num_top:] == -1).all()
    np.testing.assert_allclose(
        found.top_logprobs[:, :num_top], np.take_along_axis(expected, order, 1), atol=1e-5
    )
    np.testing.assert_allclose(found.by_id, np.take_along_axis(expected, ids, 1), atol=1e-5)


@pytest.mark.parametrize("where", ["first block", "last block", "anywhere"])
def test_the_largest_of_a_large_vocabulary(where):
    """Also where all of them are in one block, and where the last block is not full; ties by value alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3, 10_001)).astype(np.float32)
    begin, end = {"first block": (0, 128), "last block": (9984, 10_001), "anywhere": (0, 10_001)}[where]
    x[:, rng.choice(np.arange(begin, end), 15, replace=False)] += 100
    x[2] = np.round(x[2])  # ties
    values, ids = largest(jnp.asarray(x), 20)
    np.testing.assert_array_equal(values, -np.sort(-x, axis=-1)[:, :20])
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(ids), 1), values)
    assert all(len(set(row.tolist())) == 20 for row in ids)


@pytest.mark.parametrize("tokens", [8, 128, 200, 384])
def test_targets_are_scored_where_there_are_some(tokens):
    rng = np.random.default_rng(0)
    hidden = rng.normal(0, 1, (tokens, 6)).astype(np.float32)
    weights = rng.normal(0, 1, (6, 40)).astype(np.float32)
    targets = rng.integers(0, 40, tokens)
    targets[:130], targets[5], targets[130:tokens:3] = -1, 7, -1
    if tokens == 384:
        targets[256:] = -1
    found = jax.jit(lambda h, t: report_targets(lambda x: x @ weights, h, t))(hidden, targets)
    asked = np.flatnonzero(targets >= 0)
    expected = reference(hidden @ weights)
    np.testing.assert_allclose(found.logprob[asked], expected[asked, targets[asked]], atol=1e-4)
    assert found.by_id.shape == (tokens, 0) and found.top_ids.shape == (tokens, MAX_LOGPROBS)
    if tokens == 384:
        assert not np.asarray(found.logprob[256:]).any(), "a block without targets was computed"
