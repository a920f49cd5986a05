"""LLM.update_weights and LLM.weights: what a trainer calls."""

import asyncio
import threading

import jax
import numpy as np
import pytest
from flax import nnx

import weights
from jbatch import LLM, SamplingParams
from jbatch.device.model import Llama
from jbatch.errors import ConfigError, JBatchError
from tests.helpers.hf_checkpoint import random_params, tiny, write_checkpoint
from tests.helpers.tokenizers import numbered, save

SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": 16,
    "num_pages": 64,
    "decode_buckets": (4,),
    "token_buckets": (64,),
}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 6, 7], [8] * 20]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    with LLM(path, **SMALL) as llm:
        yield llm


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What an LLM answers that has loaded the weights of seed 7."""
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=7)
    with LLM(path, **SMALL) as llm:
        return answers(llm)


def answers(llm):
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def as_model(params, config):
    """A trainer's model."""
    model = nnx.eval_shape(lambda: Llama(config))
    graphdef, state = nnx.split(model)
    leaves = [(path, nnx.Param(params[".".join(map(str, path))])) for path, _ in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


@pytest.mark.parametrize("form", ["ours", "hugging-face", "jax", "float64", "module", "state"])
def test_weights_in_any_form_are_as_if_they_had_been_loaded(llm, loaded, form):
    params = random_params(tiny(), seed=7)
    tree = {
        "ours": lambda: params,
        "hugging-face": lambda: weights.to_hugging_face(params),
        "jax": lambda: jax.tree.map(jax.numpy.array, params),
        "float64": lambda: {name: array.astype(np.float64) for name, array in params.items()},
        "module": lambda: as_model(params, llm.model_config),
        "state": lambda: nnx.state(as_model(params, llm.model_config)),
    }[form]()
    llm.update_weights(random_params(tiny(), seed=8), weight_version=np.int64(8))
    assert answers(llm) != loaded
    compiled = llm.runner.num_programs
    llm.update_weights(tree, weight_version=form)
    assert answers(llm) == loaded and llm.runner.num_programs == compiled
    assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].weight_versions == ((0, form),)
    now = llm.weights()
    assert now.keys() == params.keys() and all(np.array_equal(now[name], params[name]) for name in now)


def test_a_wrong_tree_changes_nothing(llm):
    """With requests under way, which go on."""
    llm.update_weights(random_params(tiny(), seed=7), weight_version="right")
    expected, before = answers(llm), llm.weights()
    good = random_params(tiny(), seed=8)
    wrong = [
        {name: array for name, array in good.items() if name != "layers.1.mlp.down"},
        {**good, "layers.1.mlp.down": good["layers.1.mlp.down"].T},
        {**good, "norm.scale": good["norm.scale"].astype(np.int32)},
        {**good, "one.more": np.zeros(3)},
        weights.to_hugging_face(random_params(tiny(num_hidden_layers=3))),
    ]
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS]
    for stream, alone in zip(streams, expected, strict=True):
        given = list(next(stream).token_ids)
        for tree in wrong:
            with pytest.raises(weights.WeightsError, match="these weights: tensor"):
                llm.update_weights(tree, mode="abort")
        for options in ({"mode": "now"}, {"weight_version": 1.5}, {"weight_version": True}):
            with pytest.raises(ConfigError, match=next(iter(options))):
                llm.update_weights(good, **options)
        with pytest.raises(ConfigError, match="tree='NoneType': must be"):
            llm.update_weights(None)
        deltas = list(stream)
        assert given + [token for delta in deltas for token in delta.token_ids] == alone
        assert deltas[-1].output.outputs[0].weight_versions == ((0, "right"),)
    now = llm.weights()
    assert all(now[name] is before[name] for name in before)


@pytest.mark.parametrize("mode", ["retract", "wait", "abort"])
def test_an_update_between_the_pieces_of_a_stream(llm, mode):
    llm.update_weights(random_params(tiny(), seed=7), weight_version="old")
    whole = answers(llm)[0]
    stream = llm.stream(PROMPTS[0], GREEDY)
    deltas = [next(stream), next(stream)]
    llm.update_weights(random_params(tiny(), seed=8), weight_version="new", mode=mode)
    deltas += list(stream)
    completion = deltas[-1].output.outputs[0]
    assert [token for delta in deltas for token in delta.token_ids] == completion.token_ids
    labels = {"retract": ["old", "new"], "wait": ["old"], "abort": ["old"]}[mode]
    assert [label for _, label in completion.weight_versions] == labels
    assert completion.finish_reason == ("abort" if mode == "abort" else "length")
    if mode == "wait":
        assert completion.token_ids == whole
    assert answers(llm) != whole


def test_updates_while_asynchronous_calls_share_the_engine(llm):
    """As a trainer in a thread of its own does; what each call gets says by which weights."""
    trees = {seed: random_params(tiny(), seed=seed) for seed in (7, 8)}
    alone = {}
    for seed, tree in trees.items():
        llm.update_weights(tree, weight_version=seed)
        alone[seed] = answers(llm)
    stop, updates = threading.Event(), []

    def train():
        while not stop.is_set():
            seed = 7 + len(updates) % 2
            llm.update_weights(
                trees[seed], weight_version=seed, mode=("retract", "wait")[len(updates) % 3 == 2]
            )
            updates.append(seed)

    async def generate():
        return [output for _ in range(10) for output in await llm.agenerate(PROMPTS, GREEDY)]

    async def many():
        return await asyncio.gather(*(generate() for _ in range(3)))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        outputs = [output for call in asyncio.run(many()) for output in call]
    finally:
        stop.set()
        thread.join()
    assert len(outputs) == 60 and len(updates) > 3
    for output in outputs:
        token_ids, versions = output.outputs[0].token_ids, output.outputs[0].weight_versions
        assert output.error is None and len(token_ids) == 8
        first, label = versions[0]
        end = versions[1][0] if len(versions) > 1 else 8
        which = PROMPTS.index(output.prompt_token_ids)
        assert first == 0 and token_ids[:end] == alone[label][which][:end]


def test_weights_that_were_donated_are_named_until_there_are_others(llm):
    llm.update_weights(random_params(tiny(), seed=7))
    expected = answers(llm)
    train = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    train(llm.weights())
    with pytest.raises(JBatchError, match=r"parameter \S+ was deleted, or donated to a function"):
        answers(llm)
    llm.update_weights(random_params(tiny(), seed=7))
    assert answers(llm) == expected


def test_after_a_failure_half_way_every_call_says_so_until_there_are_others(llm, monkeypatch):
    llm.update_weights(random_params(tiny(), seed=7))
    expected, make, calls = answers(llm), weights.make, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
        return make(*given)

    monkeypatch.setattr(weights, "make", failing, raising=False)
    with pytest.raises(jax.errors.JaxRuntimeError):
        llm.update_weights(random_params(tiny(), seed=8))
    monkeypatch.undo()
    for call in (lambda: answers(llm), llm.weights, lambda: asyncio.run(llm.agenerate(PROMPTS, GREEDY))):
        with pytest.raises(JBatchError, match="its weights are half old and half new"):
            call()
    llm.update_weights(random_params(tiny(), seed=7))
    assert answers(llm) == expected
