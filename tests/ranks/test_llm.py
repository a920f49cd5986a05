"""The front door on two devices: the demo model, 4 heads on 2, as on one."""

import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import ConfigError
from tests.helpers.command import DEMO
from tests.helpers.hf_checkpoint import tiny, write_checkpoint

OPTIONS = dict(device="cpu", max_num_seqs=4, max_model_len=96, decode_buckets=(4,), token_buckets=(64,))
PROMPTS = ["12+34=", "One upon a time", "sort: 9 3 7", "reverse: abcdef"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SAMPLED = SamplingParams(temperature=0.8, seed=3, max_tokens=12, n=2)


def texts(llm, params):
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [sample.text for output in outputs for sample in output.outputs]


def answers(**options):
    """Texts, scores, and what is in the cache, before and after an update."""
    with LLM(DEMO, show_progress=False, **OPTIONS, **options) as llm:
        before = texts(llm, GREEDY), texts(llm, SAMPLED)
        scores = [score.logprobs[1:] for score in llm.score(PROMPTS, use_tqdm=False)]
        with llm.prefill({"prompt_token_ids": list(range(1, 70))}) as handle:
            kv = llm.kv(handle)
        llm.update_weights({name: np.asarray(leaf) * 1.01 for name, leaf in llm.weights().items()})
        return (*before, texts(llm, SAMPLED)), scores, kv


@pytest.mark.long
def test_two_devices_answer_as_one():
    one, scores, kv = answers()
    two, scores_2, kv_2 = answers(tensor_parallel_size=2)
    assert one == two
    assert kv.shape == kv_2.shape and kv.any()
    np.testing.assert_allclose(kv_2, kv, atol=1e-3)
    for logprobs, logprobs_2 in zip(scores, scores_2, strict=True):
        np.testing.assert_allclose(logprobs_2, logprobs, atol=1e-3)


@pytest.mark.parametrize(
    "num, message",
    [
        (3, r"must divide the model's num_attention_heads=4 .*: 1, 2, 4 would do"),
        (0, "must be an integer from 1 to 64"),
    ],
)
def test_numbers_that_do_not_fit(num, message):
    with pytest.raises(ConfigError, match=f"^tensor_parallel_size={num}: {message}"):
        LLM(DEMO, tensor_parallel_size=num, **OPTIONS)


def test_more_than_there_are(tmp_path):
    write_checkpoint(tmp_path, tiny(num_attention_heads=16, num_key_value_heads=16, hidden_size=64))
    with pytest.raises(ConfigError, match=r"^tensor_parallel_size=16: at most 8, as many as there are"):
        LLM(tmp_path, tensor_parallel_size=16, **OPTIONS)
