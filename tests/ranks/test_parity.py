"""Devices that compute together draw what one device draws: all features, and what a step exchanges."""

from __future__ import annotations

import re
from collections import Counter

import jax
import numpy as np
import pytest

from jbatch.device.backend import PLAIN, Attention
from jbatch.device.programs import Program
from jbatch.device.state import abstract_state
from jbatch.model_dir.config_json import parse_config
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from tests.helpers.tiny_engine import DECODE, MIXED, SEVERAL, SHAPE, drain, make_engine, make_scheduler
from tests.ranks.runners import BUCKETS, UNEVEN, make_runner, make_spec, runner_of

REST = [("heads", 2), ("heads", 4), ("heads", 8), ("uneven", 2), ("uneven", 8)]
PROMPTS = [list(range(3, 3 + n)) for n in (1, 15, 16, 33)]
GREEDY = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
SAMPLED = {"temperature": 0.8, "seed": 5, "max_tokens": 10, "ignore_eos": True}
FEATURES = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "filtered": {**SAMPLED, "top_k": 9, "top_p": 0.8, "min_p": 0.02},
    "samples": {**SAMPLED, "n": 3},
    "logprobs": {**GREEDY, "logprobs": 3, "prompt_logprobs": 2, "logprob_token_ids": [4, 7]},
    "penalties": {**SAMPLED, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "bias": {**GREEDY, "logit_bias": {3: 2.0, 60: -5}, "min_tokens": 4, "stop_token_ids": [3, 82]},
    "masked": {**SAMPLED, "allowed_token_ids": [5, 6, 7, 95], "logprobs": 2},
}


def answers(runner, **scheduler):
    """Of all features in one batch; what repeats a prompt finds its pages."""
    engine = make_engine(
        make_scheduler(buckets=BUCKETS, **scheduler), runner, vocab_size=runner.spec.config.vocab_size
    )
    for name, fields in FEATURES.items():
        for idx, prompt in enumerate(PROMPTS):
            engine.add_request(f"{name} {idx}", prompt, SamplingParams(**fields))
    return drain(engine), engine


def check_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for request_id, output in theirs.items():
        others = ours[request_id].outputs
        assert [o.token_ids for o in others] == [o.token_ids for o in output.outputs], request_id
        assert [o.finish_reason for o in others] == [o.finish_reason for o in output.outputs]
        for one, other in zip(output.outputs, others, strict=True):
            if one.logprobs is not None:
                np.testing.assert_allclose(flat(other.logprobs), flat(one.logprobs), atol=2e-4)
        if output.prompt_logprobs is not None:
            pairs = zip(output.prompt_logprobs[1:], ours[request_id].prompt_logprobs[1:], strict=True)
            assert all(one.keys() == other.keys() for one, other in pairs)


def flat(logprobs):
    return [entry.logprob for by_id in logprobs for _, entry in sorted(by_id.items())]


@pytest.mark.parametrize(
    "kind, num_ranks",
    [
        ("uneven", 4),
        *(pytest.param(*case, marks=pytest.mark.long) for case in REST),
    ],
)
def test_all_features(kind, num_ranks):
    """Of a vocabulary that is padded no id is drawn that there is not: the check is that of one device."""
    expected, _ = answers(runner_of(kind, 1))
    runner = runner_of(kind, num_ranks)
    before = runner.compilations_after_warmup
    ours, engine = answers(runner)
    check_same(ours, expected)
    assert engine.summary.found > 0, "no page was shared"
    assert runner.compilations_after_warmup == before


def test_preempted_sequences():
    expected, _ = answers(runner_of("uneven", 1))
    ours, engine = answers(runner_of("uneven", 4), num_pages=8)
    assert engine.summary.num_preempted > 0
    check_same(ours, expected)


def test_what_a_step_exchanges():
    """Two sums for each layer, one for the embedding, and the logits once."""
    spec = make_spec(parse_config(UNEVEN), 4)
    compiled = spec.compile(Program(DECODE, Sampler.GREEDY))
    found = Counter(re.findall(r" = \S+ (all-\w+|reduce-scatter|collective-\w+)\(", compiled.as_text()))
    assert found == {"all-reduce": 2 * spec.config.num_layers + 1, "all-gather": 1}
    state = sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract_state(spec.part, SHAPE)))
    assert compiled.memory_analysis().alias_size_in_bytes == state, "in place, each rank's part"


@pytest.mark.long
def test_several_steps_at_once_and_eight_devices():
    """More devices than KV heads, and than a vocabulary has multiples of."""
    prompts = [[5, 6, 7], list(range(40, 70))]
    found = []
    for num_ranks in (1, 8):
        runner = make_runner(UNEVEN, num_ranks, [Sampler.GREEDY], [SEVERAL, MIXED])
        engine = make_engine(make_scheduler(buckets=(SEVERAL, MIXED)), runner, vocab_size=101)
        for idx, prompt in enumerate(prompts):
            engine.add_request(str(idx), prompt, SamplingParams(**GREEDY))
        found.append([output.outputs[0].token_ids for output in drain(engine).values()])
        runner.close()
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", (2, 4))
def test_kernels_see_one_rank_each(num_ranks):
    """Interpreted: each rank runs them on its own heads, also where several have the same KV head."""
    config = {**UNEVEN, "head_dim": 64, "torch_dtype": "bfloat16", "num_hidden_layers": 1}
    logprobs = []
    for attention in (PLAIN, Attention.all_by("triton", interpret=True)):
        runner = make_runner(config, num_ranks, [Sampler.LOGPROBS], [MIXED], attention)
        engine = make_engine(make_scheduler(buckets=(MIXED,)), runner, vocab_size=101)
        params = SamplingParams(**{**GREEDY, "max_tokens": 1, "prompt_logprobs": 0})
        engine.add_request("a", list(range(3, 40)), params)
        logprobs.append(flat(drain(engine)["a"].prompt_logprobs[1:]))
        runner.close()
    np.testing.assert_allclose(*logprobs, atol=0.1)
