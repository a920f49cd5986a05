"""What steps report of logits, against NumPy's own definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.logprobs import largest, report, report_drawn, report_targets
from jbatch.sampling_params import MAX_LOGPROBS


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


@pytest.mark.parametrize("vocab", [30, 10_001])
def test_what_is_left_out_has_no_probability_and_is_no_padding(vocab):
    """With fewer tokens left than are reported, and the likeliest of all in the last, part-filled block."""
    rng = np.random.default_rng(0)
    logits = np.full((4, vocab), -np.inf, np.float32)
    kept = [rng.choice(vocab - 1, 5, replace=False) for _ in range(4)]
    for row, ids in zip(logits, kept, strict=True):
        row[ids], row[vocab - 1] = rng.normal(0, 1, 5), 3.0
    ids = jnp.asarray([[vocab - 1, 0, kept[row][0]] for row in range(4)])
    tokens = jnp.asarray([each[1] for each in kept])
    found = jax.tree.map(np.asarray, jax.jit(report_drawn)(logits, tokens, ids))
    finite = np.where(np.isinf(logits), -1e9, logits)
    expected = np.where(np.isinf(logits), -np.inf, reference(finite))
    np.testing.assert_allclose(found.logprob, expected[np.arange(4), tokens], atol=1e-5)
    np.testing.assert_array_equal(found.top_ids[:, 0], vocab - 1)
    assert (found.top_ids < vocab).all() and all(
        len(set(row)) == MAX_LOGPROBS for row in found.top_ids.tolist()
    )
    np.testing.assert_allclose(found.top_logprobs, np.take_along_axis(expected, found.top_ids, 1), atol=1e-5)
    assert (found.top_logprobs[:, 6:] == -np.inf).all() and np.isfinite(found.top_logprobs[:, :6]).all()
    np.testing.assert_allclose(found.by_id, np.take_along_axis(expected, np.asarray(ids), 1), atol=1e-5)
    np.testing.assert_array_equal(found.rank, 1 + (logits > logits[np.arange(4), tokens][:, None]).sum(-1))
