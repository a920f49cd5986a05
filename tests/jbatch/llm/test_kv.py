"""LLM.prefill, LLM.kv and Engine.fork: keys and values as something to hold."""

import dataclasses
import itertools
import random

import jax.numpy as jnp
import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.device.model import build
from jbatch.errors import ConfigError, JBatchError, RequestError
from pallas_kernels import rotated
from tests.helpers import attention_cases
from tests.helpers.hf_checkpoint import random_params, tiny, write_checkpoint
from tests.helpers.invariants import check_invariants
from tests.helpers.tokenizers import numbered, save

PAGE_SIZE = 16
SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": PAGE_SIZE,
    "num_pages": 13,
    "decode_buckets": (4,),
    "token_buckets": (64,),
}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SHORT = dataclasses.replace(GREEDY, max_tokens=2)
STEM = random.Random(1).choices(range(96), k=3 * PAGE_SIZE + 5)
OTHERS = [random.Random(seed).choices(range(96), k=64) for seed in range(2, 8)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    with LLM(path, **SMALL) as llm:
        yield llm


@pytest.fixture
def llm(shared):
    yield shared
    assert not shared.engine.has_unfinished and shared.engine.scheduler.pool.num_used == 0, (
        "something is left"
    )
    check_invariants(shared.engine.scheduler)
    assert shared.reset_prefix_cache()


def generate(llm, prompts, params=SHORT):
    return llm.generate(prompts, params, use_tqdm=False)


def test_what_is_prefilled_stays_whatever_else_comes(llm):
    with llm.prefill(STEM) as handle:
        assert handle.token_ids == STEM and handle.num_tokens == 3 * PAGE_SIZE
        check_invariants(llm.engine.scheduler)
        assert llm.engine.scheduler.pool.num_used == 3 and not llm.reset_prefix_cache()
        generate(llm, OTHERS)  # 24 pages and more, in a pool of 12
        check_invariants(llm.engine.scheduler)
        again = generate(llm, [[*STEM, 1], [*STEM, 2]])
        assert [output.num_cached_tokens for output in again] == [3 * PAGE_SIZE] * 2
        for output, other in zip(again, generate(llm, [OTHERS[0], [*STEM, 1]]), strict=True):
            assert output.error is None and other.error is None
    generate(llm, OTHERS)
    assert generate(llm, [[*STEM, 1]])[0].num_cached_tokens == 0, "it was let go"
    handle.close()  # twice does no harm


def test_answers_are_those_without_it(llm):
    without = generate(llm, [[*STEM, 7]], GREEDY)[0].outputs[0].token_ids
    assert llm.reset_prefix_cache()
    with llm.prefill({"prompt_token_ids": STEM, "cache_salt": "mine"}):
        other = generate(llm, [[*STEM, 7]], GREEDY)[0]
        mine = generate(llm, [{"prompt_token_ids": [*STEM, 7], "cache_salt": "mine"}], GREEDY)[0]
    assert (other.num_cached_tokens, mine.num_cached_tokens) == (0, 3 * PAGE_SIZE)
    assert other.outputs[0].token_ids == mine.outputs[0].token_ids == without


def test_the_longest_sequence_keeps_its_room(llm):
    """6 pages of 12: two prompts of 3 pages are held, and a third is not."""
    with llm.prefill(STEM), llm.prefill(STEM) as same, llm.prefill(OTHERS[0][:50]):
        assert llm.engine.scheduler.pool.num_used == 6, "pages that both hold count once"
        with pytest.raises(
            ConfigError, match=r"num_pages=13: the pool is too full to hold 3 pages .* at most 6"
        ):
            llm.prefill(OTHERS[1][:50])
        longest = generate(llm, [OTHERS[2], OTHERS[3]], dataclasses.replace(GREEDY, max_tokens=32))
        assert [len(output.outputs[0].token_ids) for output in longest] == [32, 32], "it ends all the same"
        same.close()
        assert llm.engine.scheduler.pool.num_used == 6, "the other one holds them"


def test_what_is_refused(llm, tmp_path):
    with pytest.raises(JBatchError, match="prefill: prompt_token_ids=96: must be from 0 to 95"):
        llm.prefill([96])
    with llm.prefill([1, 2, 3]) as short:
        assert short.num_tokens == 0 and llm.kv(short).shape[2] == 0, "less than a page"
    with pytest.raises(JBatchError, match="it was closed"):
        llm.kv(short)
    write_checkpoint(tmp_path, seed=3)
    refused = pytest.raises(ConfigError, match="enable_prefix_caching=False: prefill needs it")
    with LLM(tmp_path, **SMALL, enable_prefix_caching=False) as other, refused:
        other.prefill(STEM)


def test_new_weights_let_all_go(llm):
    old = llm.weights()
    handle = llm.prefill(STEM)
    llm.update_weights(dict(random_params(tiny(), seed=9)))
    assert generate(llm, [[*STEM, 1]])[0].num_cached_tokens == 0
    with pytest.raises(JBatchError, match="its pages were lost"):
        llm.kv(handle)
    handle.close()
    llm.update_weights(dict(random_params(tiny(), seed=3)))
    assert old.keys() == llm.weights().keys()


def test_kv_is_what_the_model_computes(llm):
    with llm.prefill(STEM) as handle:
        kv = llm.kv(handle)
    config = llm.model_config
    assert kv.shape == (config.num_layers, 2, 48, config.num_kv_heads, config.head_dim)
    assert kv.dtype == np.float32
    np.testing.assert_allclose(kv, computed(llm, STEM[:48]), rtol=1e-4, atol=1e-4)


def test_kv_of_a_request_grows_with_it(llm):
    engine = llm.engine
    llm.prepare([GREEDY])
    engine.add_request("r", STEM, GREEDY)
    outputs = engine.step().outputs
    llm.kv("r")  # the first call compiles a program
    compiled, seen = llm.runner.compilations_after_warmup, []
    for _ in range(20):
        outputs += engine.step().outputs
        seen.append(llm.kv("r"))
        check_invariants(engine.scheduler)
    assert llm.runner.compilations_after_warmup == compiled
    for before, after in itertools.pairwise(seen):
        np.testing.assert_array_equal(after[:, :, : before.shape[2]], before)
    output = (outputs + list(drain(engine).values()))[0]
    token_ids = output.outputs[0].token_ids
    assert len(token_ids) == 24 and len(STEM) + 9 <= seen[-1].shape[2] < len(STEM) + 24
    assert token_ids == generate(llm, [STEM], GREEDY)[0].outputs[0].token_ids
    whole = computed(llm, [*STEM, *token_ids])[:, :, : seen[-1].shape[2]]
    np.testing.assert_allclose(seen[-1], whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(RequestError, match="request_id='r': there is no such request"):
        llm.kv("r")


def drain(engine, steps=10**6):
    outputs = {}
    while engine.has_unfinished and steps:
        outputs |= {output.request_id: output for output in engine.step().outputs}
        steps -= 1
    return outputs


@pytest.mark.parametrize("steps", [0, 1, 8, 20])
def test_a_fork_goes_on_as_the_other_does(llm, steps):
    engine = llm.engine
    llm.prepare([GREEDY])
    engine.add_request("r", STEM, GREEDY)
    drain(engine, steps)
    engine.fork("r", "fork")
    check_invariants(engine.scheduler)
    outputs = drain(engine)
    whole = outputs["r"].outputs[0].token_ids
    fork = outputs["fork"]
    num_drawn = len(fork.prompt_token_ids) - len(STEM)
    assert num_drawn >= steps - 2 and len(whole) == 24
    assert (
        fork.prompt_token_ids == STEM + whole[:num_drawn] and fork.outputs[0].token_ids == whole[num_drawn:]
    )
    if steps > 1:
        assert fork.num_cached_tokens >= 3 * PAGE_SIZE
    assert generate(llm, [STEM], GREEDY)[0].outputs[0].token_ids == whole


def test_a_fork_draws_for_itself(llm):
    engine, params = llm.engine, SamplingParams(temperature=1, max_tokens=24, ignore_eos=True, seed=4)
    llm.prepare([params])
    engine.add_request("r", STEM, params)
    drain(engine, 5)
    engine.fork("r", "other")
    engine.fork("r", "same", seed=4)
    with pytest.raises(RequestError, match="request_id='same': a request of this id has not ended yet"):
        engine.fork("r", "same")
    engine.abort("r")
    outputs = drain(engine)
    assert len(outputs["other"].outputs[0].token_ids) > 15
    assert outputs["other"].outputs[0].token_ids != outputs["same"].outputs[0].token_ids
    whole = generate(llm, [STEM], params)[0].outputs[0].token_ids
    assert whole[-len(outputs["same"].outputs[0].token_ids) :] == outputs["same"].outputs[0].token_ids
    for call in (engine.fork, lambda *ids: llm.kv(ids[0])):
        with pytest.raises(RequestError, match="request_id='r': there is no such request"):
            call("r", "third")


def computed(llm, token_ids):
    """Keys and values by the model's own layers, with attention in NumPy."""
    seen = []

    def attend(layer_idx, qkv, cos, sin):
        q, k, v = (np.asarray(part) for part in rotated(qkv, cos, sin))
        seen.append((k, v))
        return jnp.asarray(attention_cases.attend(q, k, v))

    model = build(llm.model_config, tuple(llm.weights().values()))
    model(jnp.array(token_ids), jnp.arange(len(token_ids)), attend)
    return np.array(seen)
