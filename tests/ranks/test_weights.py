"""Weights on several devices: a part on each, from files and from memory, and whole again."""

import jax
import numpy as np
import pytest

import weights
from jbatch.device.model import abstract_params
from jbatch.device.runner import Runner
from jbatch.device.sharding import forms_of, original
from jbatch.model_dir.config_json import parse_config
from jbatch.sampler import Sampler
from tests.helpers.hf_checkpoint import random_params, write_checkpoint
from tests.helpers.tiny_engine import MIXED
from tests.ranks.runners import HEADS, UNEVEN, make_spec, params_for, sources

CASES = [(HEADS, 4), (UNEVEN, 2), (UNEVEN, 8)]


def idle_runner(config, num_ranks):
    """Nothing is compiled."""
    spec = make_spec(parse_config(config), num_ranks)
    return Runner(spec, params_for(spec, sources(config)), [MIXED], [Sampler.GREEDY])


def check_shards(params, spec):
    """Each device has what the programs say, and no more."""
    like = abstract_params(spec.part)
    for name, leaf in params.items():
        assert leaf.sharding.is_equivalent_to(spec.params[name].sharding, leaf.ndim)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {like[name].shape}, name


@pytest.mark.parametrize("config, num_ranks", CASES)
@pytest.mark.parametrize("converted", (False, True))
def test_loading(tmp_path, config, num_ranks, converted):
    spec = make_spec(parse_config(config), num_ranks)
    write_checkpoint(tmp_path / "model", config, seed=3)
    like, directory = abstract_params(spec.config), tmp_path / "model"
    if converted:
        directory = tmp_path / "converted"
        weights.save(directory, weights.load(tmp_path / "model", like), tmp_path / "model")
    shardings = {name: leaf.sharding for name, leaf in spec.params.items()}
    loaded = weights.load(directory, like, shardings, forms_of(spec.config, num_ranks))
    check_shards(loaded, spec)
    for name, leaf in params_for(spec, sources(config)).items():
        assert np.array_equal(loaded[name], leaf), name


def test_random_weights_are_those_of_one_device():
    """Cut on the devices as they are drawn, or on the host where they lie in another form."""
    spec = make_spec(parse_config(UNEVEN), 4)
    like = {name: abstract_params(spec.config)[name] for name in ("layers.0.attention.o", "embedding")}
    shardings = {name: spec.params[name].sharding for name in like}
    drawn = weights.random(like, 1, shardings=shardings, forms=forms_of(spec.config, 4))
    check_shards(drawn, spec)
    for name, leaf in weights.random(like, 1).items():
        np.testing.assert_allclose(original(name, drawn[name], spec.config, 4), leaf, rtol=1e-6)


@pytest.mark.parametrize("config, num_ranks", CASES)
@pytest.mark.parametrize("theirs", (False, True), ids=("our-names", "hugging-face"))
def test_an_update_and_back(config, num_ranks, theirs):
    """`params` are the model's own again, whatever lies on the devices: they may be given to an update."""
    runner, new = idle_runner(config, num_ranks), random_params(config, seed=4)
    like = abstract_params(runner.spec.config)
    given = weights.to_hugging_face(new) if theirs else new
    trees = given, {name: jax.numpy.asarray(array) for name, array in given.items()}
    before = runner.compilations_after_warmup
    for tree in trees:
        runner.replace_params(weights.match(tree, like))
        params = runner.params
        assert all(np.array_equal(params[name], new[name]) for name in new)
        check_shards(dict(zip(like, runner._params.leaves, strict=True)), runner.spec)
    runner.replace_params(weights.match(params, like))
    assert all(np.array_equal(runner.params[name], new[name]) for name in new)
    assert runner.compilations_after_warmup == before
