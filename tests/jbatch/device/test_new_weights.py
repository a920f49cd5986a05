"""Weights are replaced under a runner: whose memory, how much of it, and what is left where that fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import weights
from jbatch.device.compile_counter import compile_counter
from jbatch.device.model import Llama, abstract_params
from jbatch.device.tree import named_arrays
from jbatch.errors import ConfigError, JBatchError
from jbatch.sampling_params import SamplingParams
from jbatch.seam.loaded import Version
from tests.helpers.tiny_engine import DECODE, MIXED, drain, make_engine, make_runner, tiny_config

LIKE = abstract_params(tiny_config())
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def tree_of(seed):
    return weights.random(LIKE, seed=seed, scale=0.15)


def update(runner, tree, label=None):
    runner.replace_params(weights.match(named_arrays(tree), LIKE), label)


def answer(runner):
    engine = make_engine(runner=runner)
    engine.add_request("a", [5, 6, 7], GREEDY)
    return drain(engine)["a"].outputs[0].token_ids


@pytest.fixture(scope="module")
def runner():
    return make_runner(buckets=(DECODE, MIXED))


def test_a_tree_in_any_form_is_arrays_by_name():
    model = Llama(tiny_config())
    state = nnx.state(model)
    for tree in (model, state, nnx.split(model)[1], nnx.to_pure_dict(state), tree_of(1)):
        named = named_arrays(tree)
        assert named.keys() == LIKE.keys() and all(isinstance(leaf, jax.Array) for leaf in named.values())
    nested = {"layers": [{"mlp": {"down": 1}}, {"mlp": {"down": 2}}]}
    assert named_arrays(nested) == {"layers.0.mlp.down": 1, "layers.1.mlp.down": 2}
    abstract = named_arrays(nnx.eval_shape(lambda: Llama(tiny_config())))
    with pytest.raises(weights.WeightsError, match=r"tensor embedding is a .*ShapeDtypeStruct"):
        weights.match(abstract, LIKE)
    with pytest.raises(ConfigError, match="tree='list': must be an nnx module or state, or a dictionary"):
        named_arrays([1])


def test_steps_compute_with_the_new_weights_and_compile_nothing(runner):
    update(runner, tree_of(1))
    first, programs, before = answer(runner), runner.num_programs, compile_counter().count
    update(runner, tree_of(2), "two")
    second = answer(runner)
    update(runner, tree_of(1))
    assert answer(runner) == first != second
    assert (runner.num_programs, compile_counter().count) == (programs, before)


def test_what_joins_tensors_is_no_program_of_steps(runner):
    theirs = weights.to_hugging_face({name: np.array(leaf) for name, leaf in tree_of(1).items()})
    tree = {name: jnp.array(array) for name, array in theirs.items()}
    before = runner.compilations_after_warmup
    update(runner, tree)
    assert runner.compilations_after_warmup == before


def test_the_version_counts_updates_whatever_they_are_called(runner):
    first = runner.tenancy.weights.version.num_updates
    versions = []
    for label in (None, "a", "a", None):
        update(runner, tree_of(1), label)
        versions.append(runner.tenancy.weights.version)
    labels = (first + 1, "a", "a", first + 4)
    assert versions == [Version(first + at, label) for at, label in enumerate(labels, start=1)]


def test_a_trainer_may_donate_what_it_gave(runner):
    tree = tree_of(4)
    update(runner, tree)
    before = answer(runner)
    train = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    train(tree)
    assert all(leaf.is_deleted() for leaf in tree.values())
    assert answer(runner) == before


def test_memory_is_taken_for_one_parameter_at_a_time(runner, monkeypatch):
    tree = {name: np.array(leaf) for name, leaf in tree_of(1).items()}
    live, make = [], weights.make

    def watched(*given):
        made = make(*given)
        live.append(sum(leaf.nbytes for leaf in jax.live_arrays()))
        return made

    monkeypatch.setattr(weights, "make", watched, raising=False)
    before = sum(leaf.nbytes for leaf in jax.live_arrays())
    update(runner, tree)
    assert len(live) == len(LIKE)
    assert max(live) - before <= max(leaf.nbytes for leaf in runner.params.values())
    assert sum(leaf.nbytes for leaf in jax.live_arrays()) == before


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED"), KeyboardInterrupt()])
def test_an_update_that_ends_half_way_leaves_a_runner_that_says_so(runner, monkeypatch, error):
    update(runner, tree_of(1))
    old, made, make = answer(runner), [], weights.make

    def failing(*given):
        if len(made) == failing_at:
            raise error
        made.append(make(*given))
        return made[-1]

    failing_at = 0  # before anything is replaced: nothing has happened
    monkeypatch.setattr(weights, "make", failing, raising=False)
    with pytest.raises(type(error)):
        update(runner, tree_of(2))
    assert answer(runner) == old
    made.clear()
    failing_at = 3
    with pytest.raises(type(error)):
        update(runner, tree_of(2))
    monkeypatch.undo()
    with pytest.raises(JBatchError, match=r"weights are half old and half new: an update ended at parameter"):
        answer(runner)
    update(runner, tree_of(1))
    assert answer(runner) == old


def test_weights_that_somebody_deleted_are_named(runner):
    update(runner, tree_of(1))
    old = answer(runner)
    runner.params["norm.scale"].delete()
    with pytest.raises(JBatchError, match=r"parameter norm.scale was deleted, or donated"):
        answer(runner)
    update(runner, tree_of(1))
    assert answer(runner) == old


def test_a_closed_runner_takes_no_weights(runner, monkeypatch):
    monkeypatch.setattr(runner.tenancy, "closed", True)  # as `close` does
    with pytest.raises(JBatchError, match="closed"):
        update(runner, tree_of(1))


def test_deleted_arrays_are_refused_before_anything_is_touched(runner):
    update(runner, tree_of(1))
    old, tree = answer(runner), tree_of(2)
    jnp.asarray(tree["norm.scale"])
    tree["norm.scale"].delete()
    with pytest.raises(weights.WeightsError, match=r"norm.scale was deleted"):
        update(runner, tree)
    assert answer(runner) == old
