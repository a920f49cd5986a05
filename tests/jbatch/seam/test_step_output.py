"""The packed output of a step: tokens, and log-probabilities where it reports them."""

import numpy as np
import pytest

from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import LOGPROBS_WIDTH, num_draws, unpack_output

SHAPE = StateShape(num_rows=6, num_pages=20, page_size=16, pages_per_seq=5)
PLAIN = [Sampler.GREEDY, Sampler.PLAIN, Sampler.FILTERED, Sampler.PROCESSED]
REPORTING = [Sampler.LOGPROBS, Sampler.EXTENDED]


@pytest.mark.parametrize(
    ("bucket", "draws"),
    [(decode_bucket(4), 4), (prefill_bucket(8), 1), (prefill_bucket(64), 4), (Bucket(4, 64), 8)],
)
def test_every_slot_draws_and_as_many_chunks_as_there_is_room_for(bucket, draws):
    assert num_draws(bucket, SHAPE) == draws


@pytest.mark.parametrize("sampler", PLAIN)
def test_unpack_output(sampler):
    packed = np.array([[41, 1, 0], [0, 0, 2]], np.int32)
    output = unpack_output(packed, decode_bucket(2), SHAPE, sampler)
    assert output.tokens.tolist() == [[41], [0]]
    assert output.num_tokens.tolist() == [1, 0]
    assert output.status.tolist() == [0, 2]
    assert output.logprobs is None and output.prompt_logprobs is None


def test_several_steps_of_one_dispatch():
    packed = np.array([[41, 42, 43, 3, 0], [51, 52, 0, 2, 1]], np.int32)
    output = unpack_output(packed, Bucket(2, 0, 3), SHAPE, Sampler.GREEDY)
    assert output.tokens.tolist() == [[41, 42, 43], [51, 52, 0]]
    assert (output.num_tokens.tolist(), output.status.tolist()) == ([3, 2], [0, 1])


def logprob_columns(num, seed):
    """A Logprobs of `num` positions: its arrays, and its columns as a device packs them."""
    rng = np.random.default_rng(seed)
    integers = lambda *size: rng.integers(0, 2**31, size, np.int32)  # noqa: E731
    floats = lambda *size: rng.standard_normal(size, np.float32)  # noqa: E731
    arrays = floats(num, 1), integers(num, 1), integers(num, MAX_LOGPROBS)
    arrays += floats(num, MAX_LOGPROBS), floats(num, MAX_LOGPROB_TOKEN_IDS)
    arrays[0][0], arrays[3][0, 0] = np.nan, -np.inf
    return arrays, np.concatenate([array.view(np.int32) for array in arrays], axis=1)


def check_logprobs(logprobs, arrays):
    logprob, rank, *others = arrays
    for ours, theirs in zip(logprobs, (logprob[:, 0], rank[:, 0], *others), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("sampler", REPORTING)
@pytest.mark.parametrize("bucket", [decode_bucket(4), prefill_bucket(32), Bucket(3, 32)])
def test_unpack_output_with_logprobs(bucket, sampler):
    """Draw by draw its tokens and its log-probabilities; then, where there are chunks, token by token."""
    draws = num_draws(bucket, SHAPE)
    drawn = np.arange(draws * (bucket.steps + 2), dtype=np.int32).reshape(draws, -1)
    arrays, columns = logprob_columns(draws, seed=0)
    assert columns.shape[1] == LOGPROBS_WIDTH
    prompt_arrays, prompt_columns = logprob_columns(max(1, bucket.tokens), seed=1)
    parts = [np.concatenate([drawn, columns], axis=1), *([prompt_columns] if bucket.tokens else [])]
    output = unpack_output(np.concatenate([part.reshape(-1) for part in parts]), bucket, SHAPE, sampler)
    np.testing.assert_array_equal(output.tokens, drawn[:, : bucket.steps])
    np.testing.assert_array_equal(output.num_tokens, drawn[:, bucket.steps])
    np.testing.assert_array_equal(output.status, drawn[:, bucket.steps + 1])
    check_logprobs(output.logprobs, arrays)
    if bucket.tokens:
        check_logprobs(output.prompt_logprobs, prompt_arrays)
    else:
        assert output.prompt_logprobs is None


@pytest.mark.parametrize("sampler", Sampler)
def test_several_steps_report_no_logprobs(sampler):
    """None of their requests asks for any, also where the program could."""
    drawn = np.arange(2 * (3 + 2), dtype=np.int32).reshape(2, -1)
    output = unpack_output(drawn, Bucket(2, 0, 3), SHAPE, sampler)
    np.testing.assert_array_equal(output.tokens, drawn[:, :3])
    assert output.num_tokens.tolist() == [3, 8] and output.status.tolist() == [4, 9]
    assert output.logprobs is output.prompt_logprobs is None
