"""LLM with several replicas, each on a device of its own."""

import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import ConfigError
from tests.helpers.hf_checkpoint import random_params, tiny, write_checkpoint
from tests.helpers.sizes import sized
from tests.helpers.tokenizers import numbered, save

# One bucket of each kind, so that tokens are equal bit for bit; programs are in the tests' cache.
SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": 16,
    "num_pages": 64,
    "decode_buckets": (4,),
    "token_buckets": (64,),
    "samplers": ("filtered",),
}
PROMPTS = [[1 + idx, *range(3, 3 + idx % 40)] for idx in range(40)]
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    return path


@pytest.fixture(scope="module")
def expected(model_dir):
    """Of one engine."""
    with LLM(model_dir, **SMALL) as llm:
        return [answers(llm, params) for params in (GREEDY, SAMPLED)]


@pytest.fixture(scope="module")
def two(model_dir):
    with LLM(model_dir, **SMALL, data_parallel_size=2) as llm:
        yield llm


def answers(llm, params, prompts=PROMPTS):
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(prompts)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("num", sized([2], [2, 4]))
def test_tokens_are_those_of_one_engine_and_nothing_is_compiled_after_warm_up(model_dir, expected, num):
    with LLM(model_dir, **SMALL, data_parallel_size=num) as llm:
        llm.prepare()
        before = llm.runner.compilations_after_warmup
        assert [answers(llm, params) for params in (GREEDY, SAMPLED)] == expected
        assert before == llm.runner.compilations_after_warmup == 0
        devices = [engine.runner.params["embedding"].devices() for engine in llm.engine.engines]
        assert len(set.union(*devices)) == num
        assert all(engine.summary.num_steps for engine in llm.engine.engines)


def test_a_replica_that_is_lost_in_the_middle(two, expected, monkeypatch):
    """Its device fails from its fifth step on: each request is answered once, by the other."""
    lost, steps = two.engine.engines[1].runner, []
    submit = lost.submit

    def failing(step):
        steps.append(step)
        if len(steps) > 5:
            raise RuntimeError("the device is gone")
        return submit(step)

    monkeypatch.setattr(lost, "submit", failing)
    assert answers(two, GREEDY) == expected[0] and len(steps) == 6
    monkeypatch.undo()
    assert answers(two, GREEDY) == expected[0]


def test_where_all_are_lost_the_error_is_the_callers(two, expected, monkeypatch):
    for engine in two.engine.engines:
        monkeypatch.setattr(engine.runner, "submit", lambda step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(two, GREEDY)
    monkeypatch.undo()
    assert answers(two, GREEDY) == expected[0]


def test_a_stream(two, expected):
    tokens = [[] for _ in PROMPTS]
    for delta in two.stream(PROMPTS, GREEDY):
        tokens[delta.prompt_idx] += delta.token_ids
    assert tokens == expected[0]


@pytest.mark.long
def test_scores(two):
    assert [len(score.logprobs) for score in two.score(PROMPTS[:9], use_tqdm=False)] == list(
        map(len, PROMPTS[:9])
    )


def test_weights_change_on_all_of_them(two, model_dir, expected):
    old = {name: leaf.copy() for name, leaf in two.weights().items()}
    two.update_weights(random_params(tiny(), seed=4))
    with LLM(model_dir, **SMALL) as llm:
        llm.update_weights(random_params(tiny(), seed=4))
        other = answers(llm, GREEDY)
    assert answers(two, GREEDY) == other != expected[0]
    two.update_weights(old)
    assert answers(two, GREEDY) == expected[0]
    with pytest.raises(ConfigError, match="mode='wait': not with several replicas"):
        two.update_weights(old, mode="wait")


@pytest.mark.parametrize("call", [lambda llm: llm.prefill([1, 2]), lambda llm: llm.kv("0")])
def test_what_is_of_one_engine_is_refused_by_name(two, call):
    with pytest.raises(ConfigError, match=r"^data_parallel_size=2: .* of one engine alone"):
        call(two)
    with pytest.raises(ConfigError, match=r"^runner='Runner'"):
        two.new_engine(runner=two.runner)
