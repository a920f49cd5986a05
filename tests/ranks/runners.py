"""Small random models on several devices, and the same on one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax

import weights
from jbatch.config import ModelConfig
from jbatch.device.backend import PLAIN, Attention
from jbatch.device.model import abstract_params
from jbatch.device.programs import StepSpec
from jbatch.device.runner import Runner
from jbatch.device.sharding import forms_of, mesh_of
from jbatch.model_dir.config_json import parse_config
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from tests.helpers.hf_checkpoint import random_params, tiny
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import DECODE, MIXED, SHAPE

HEADS = tiny(num_attention_heads=8, num_key_value_heads=8)
# Fewer KV heads than ranks, and a vocabulary that no number of ranks divides.
UNEVEN = tiny(
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=101,
    tie_word_embeddings=True,
    attention_bias=True,
    mlp_bias=True,
)


BUCKETS = sized((MIXED,), (DECODE, MIXED))


def sources(config: dict) -> dict[str, weights.Source]:
    """Random parameters, as an update has them."""
    return weights.match(random_params(config, seed=3), abstract_params(parse_config(config)))


def params_for(spec: StepSpec, given: dict[str, weights.Source]) -> dict[str, jax.Array]:
    """Parameters where the programs of `spec` look for them."""
    forms, like = forms_of(spec.config, spec.ranks.size), abstract_params(spec.config)
    return {
        name: weights.make(given[name], like[name], leaf.sharding, forms.get(name))
        for name, leaf in spec.params.items()
    }


def make_spec(config: ModelConfig, num_ranks: int, attention: Attention = PLAIN) -> StepSpec:
    devices = tuple(jax.devices()[:num_ranks])
    return StepSpec(config, SHAPE, devices[0], attention, mesh=mesh_of(devices, num_ranks))


def make_runner(
    config: dict,
    num_ranks: int,
    samplers: Sequence[Sampler] = (Sampler.EXTENDED,),
    buckets: Sequence[Bucket] = BUCKETS,
    attention: Attention = PLAIN,
    given: Mapping[str, jax.Array] | None = None,
) -> Runner:
    spec = make_spec(parse_config(config), num_ranks, attention)
    of = sources(config) if given is None else weights.match(given, abstract_params(spec.config))
    runner = Runner(spec, params_for(spec, of), buckets, samplers)
    runner.prepare()
    runner.prepare_sharing()
    return runner


@functools.cache
def runner_of(kind: str, num_ranks: int) -> Runner:
    """With every feature; do not close it."""
    return make_runner({"heads": HEADS, "uneven": UNEVEN}[kind], num_ranks)
