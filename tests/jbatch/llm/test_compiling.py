"""What is compiled, and when; functions of the user's own."""

import asyncio
import dataclasses

import jax
import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import ConfigError, RequestError
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from tests.helpers.small_llm import GREEDY, SMALL, ids_of
from tests.helpers.tiny_engine import drain

# More than tokens.


def test_what_requests_need_is_compiled_before_they_run(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        assert llm.runner.num_programs == 0
        expected = ids_of(llm.generate([[5, 6]], GREEDY))
        assert llm.runner.num_programs == 1
        with pytest.raises(RequestError, match="not compiled"):
            llm.engine.add_request("mine", [5, 6], dataclasses.replace(GREEDY, logprobs=1))
        params = [GREEDY, dataclasses.replace(GREEDY, logprobs=1, prompt_logprobs=0)]
        outputs = llm.generate([[5, 6]] * 2, params)
        assert ids_of(outputs) == expected * 2
        assert llm.runner.num_programs == 2
        entry = outputs[1].outputs[0].logprobs[0]
        (token_id,) = entry
        assert token_id == expected[0][0] and entry[token_id].decoded_token == f"{token_id:02d}."
        assert list(outputs[1].prompt_logprobs[1]) == [6]
        (silent,) = llm.generate([[5, 6]], dataclasses.replace(GREEDY, logprobs=1, detokenize=False))
        assert silent.outputs[0].logprobs[0][token_id].decoded_token is None
        assert llm.runner.num_programs == 2 and llm.runner.compilations_after_warmup == 0


def test_what_samples_take_is_compiled_before_they_run(model_dir):
    """To share their prompt's pages. Who asks for one sample need not wait for that."""
    with LLM(model_dir, **SMALL) as llm:
        (one,) = llm.generate([5, 6, 7], dataclasses.replace(GREEDY))
        assert not llm.runner._pages.prepared
        (many,) = llm.generate([5, 6, 7], dataclasses.replace(GREEDY, n=3))
        assert [sample.token_ids for sample in many.outputs] == [one.outputs[0].token_ids] * 3
        assert llm.runner._pages.prepared and llm.runner.compilations_after_warmup == 0


def test_only_what_is_named_is_compiled(model_dir, llm):
    prompts, params = [[5, 6], [7]], [GREEDY, SamplingParams(max_tokens=6, seed=1)]
    with LLM(model_dir, samplers=("extended",), **SMALL) as other:
        assert ids_of(other.generate(prompts, params)) == ids_of(llm.generate(prompts, params))
        other.prepare([*params, SamplingParams(top_k=3), SamplingParams(logprobs=1)])
        assert other.runner.num_programs == 1


def test_what_a_run_compiles_and_what_prepare_compiles(model_dir):
    """For one prompt its own two programs; in advance those of any number, too."""
    sizes = SMALL | {"decode_buckets": (1, 4), "token_buckets": (64, 96)}
    with LLM(model_dir, **sizes) as llm:
        expected = ids_of(llm.generate([5, 6], GREEDY))
        own = {(Bucket(4, 64), Sampler.FILTERED), (Bucket(1, 0), Sampler.GREEDY)}
        assert set(llm.runner._programs) == own
        llm.prepare([GREEDY])
        greedy = {(Bucket(4, 96), Sampler.FILTERED), (Bucket(4, 0), Sampler.GREEDY)}
        assert set(llm.runner._programs) == own | greedy
        assert [llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids] == expected
        assert llm.runner.num_programs == 4 and llm.runner.compilations_after_warmup == 0


def test_a_function_of_the_users(model_dir):
    """It is in every step: no token comes twice, and what it makes a NaN of ends alone."""

    def no_repeats(logits, state):
        logits = jax.numpy.where(state.in_prompt | (state.counts > 0), -jax.numpy.inf, logits)
        wanted = jax.numpy.arange(96) == 40 + state.request_idx[:, None]
        logits = jax.numpy.where((state.prompt_len == 4)[:, None] & wanted, 1e9, logits)
        return jax.numpy.where((state.prompt_len == 3)[:, None], jax.numpy.nan, logits)

    with LLM(model_dir, logits_fn=no_repeats, **SMALL) as llm:
        for params in (GREEDY, SamplingParams(max_tokens=40, seed=1, ignore_eos=True)):
            broken, good = llm.generate([[1, 2, 3], [5, 6]], params)
            ids = good.outputs[0].token_ids
            assert llm.runner.num_programs == 1
            assert len({5, 6, *ids}) == 2 + len(ids) == 2 + params.max_tokens
            assert "not finite at position 3" in broken.error and not broken.outputs[0].token_ids
        one = dataclasses.replace(GREEDY, max_tokens=1)
        for _ in range(2):  # each call counts its prompts
            assert ids_of(llm.generate([[1, 2, 3, 4]] * 6, one)) == [[40 + idx] for idx in range(6)]
        outputs = asyncio.run(llm.agenerate([[1, 2, 3, 4]] * 2, dataclasses.replace(one, n=2)))
        assert [[c.token_ids for c in output.outputs] for output in outputs] == [[[40]] * 2, [[41]] * 2]
        llm.engine.add_request("by hand", [1, 2, 3, 4], one, index=7)
        llm.engine.add_request("another", [1, 2, 3, 4], one, index=7, request_idx=50)
        found = {output.request_id: output.outputs[0].token_ids for output in drain(llm.engine).values()}
        assert found == {"by hand": [47], "another": [90]}
        with pytest.raises(RequestError, match=r"^request_idx=-1: must be an integer from 0"):
            llm.engine.add_request("bad", [1], one, request_idx=-1)


def test_a_function_that_cannot_be_compiled(model_dir):
    with pytest.raises(ConfigError, match=r"^logits_fn='<lambda>': cannot be traced for 8 draws: TypeError"):
        LLM(model_dir, logits_fn=lambda logits: logits, **SMALL)
    with pytest.raises(ConfigError, match=r"^logits_fn='<lambda>': must return float32\[8, 96\]"):
        LLM(model_dir, logits_fn=lambda logits, state: logits[0], **SMALL)
    with pytest.raises(ConfigError, match=r"^samplers="):
        LLM(model_dir, logits_fn=lambda logits, state: logits, samplers=("greedy",), **SMALL)
