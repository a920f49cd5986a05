"""An engine's attention backends: each that this machine can run, interpreted, against plain JAX."""

import functools
import types

import jax
import numpy as np
import pytest

import weights
from jbatch.config import ModelConfig
from jbatch.device.backend import PLAIN, Attention, choose_attention, describe, problems_of, rotation_of
from jbatch.device.model import Llama, abstract_params
from jbatch.device.platform import find_device
from jbatch.device.programs import Program, StepSpec
from jbatch.device.runner import Runner
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import parse_config
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import decode_bucket
from jbatch.seam.shape import StateShape
from pallas_kernels._compat import HAS_MOSAIC
from tests.helpers.hf_checkpoint import tiny
from tests.helpers.paged import PagedModel
from tests.helpers.tiny_engine import (
    DECODE,
    MAX_MODEL_LEN,
    MIXED,
    NUM_ROWS,
    PAGE_SIZE,
    PREFILL,
    drain,
    make_engine,
    make_scheduler,
)

BACKENDS = [
    "triton",
    pytest.param("mosaic", marks=pytest.mark.skipif(not HAS_MOSAIC, reason="Mosaic GPU needs jax >= 0.11")),
]
NUM_PAGES = 12  # few enough to preempt
PROMPTS = [list(range(1, 1 + n)) for n in (1, 15, 16, 17, 40)]


@functools.cache
def config(dtype: str = "bfloat16") -> ModelConfig:
    """Small, but with heads that the kernels take: 4 of 64 dimensions over 2 KV heads."""
    return parse_config(tiny(head_dim=64, torch_dtype=dtype))


@functools.cache
def params(dtype: str = "bfloat16"):
    drawn = weights.random(abstract_params(config()), seed=3, scale=0.15)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)


def log_probs(dtype: str, attention: Attention, slots: int) -> list[np.ndarray]:
    """Of prompts' tokens; the last ones go through decode. All of them where one sequence is alone."""
    model = PagedModel(config(dtype), params(dtype), max_len=48, attention=attention, slots=slots)
    if slots == 1:
        return model.log_probs([PROMPTS[-1][:18]], [0])
    return model.log_probs(PROMPTS, [max(1, len(prompt) - 5) for prompt in PROMPTS])


def make_runner(attention: Attention) -> Runner:
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
    runner = Runner(StepSpec(config(), shape, find_device("cpu"), attention), params(), [DECODE, MIXED])
    runner.prepare()
    return runner


@pytest.mark.parametrize("slots", (1, 8))
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probabilities_are_as_good_as_plain_jax(backend, slots):
    """Both run in bfloat16; what is right is float32."""
    right = log_probs("float32", PLAIN, slots)
    plain = log_probs("bfloat16", PLAIN, slots)
    kernels = log_probs("bfloat16", Attention.all_by(backend, interpret=True), slots)
    for wanted, usual, ours in zip(right, plain, kernels, strict=True):
        assert np.isfinite(ours).all()
        usual_error, error = np.abs(usual - wanted), np.abs(ours - wanted)
        assert error.max() < 2 * usual_error.max()
        assert error.mean() < 1.2 * usual_error.mean()


@pytest.mark.parametrize(
    "attention, rows", [(PLAIN, 1), (Attention.all_by("triton"), 2), (Attention("xla", "triton"), 1)]
)
def test_a_kernel_decodes_a_lone_sequence_beside_a_dead_one(attention, rows, monkeypatch):
    """Of a single row XLA's GPU compiler makes two kernels more for each layer. A CPU computes one row."""
    seen, call = [], Llama.__call__

    def spy(self, tokens, positions, attend):
        seen.append(tokens.shape)
        return call(self, tokens, positions, attend)

    monkeypatch.setattr(Llama, "__call__", spy)
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
    spec = StepSpec(config(), shape, find_device("cpu"), attention._replace(interpret=True))
    lowered = spec.lower(Program(decode_bucket(1), Sampler.GREEDY))
    assert seen == [(rows,)]
    assert lowered.out_info[-1].shape == (1, 3)  # what is read has no dead one in it
    decode, *_ = problems_of(config(), shape, decode_bucket(1))
    assert (
        (decode.slots, decode.tokens) == (2, 2) == (rotation_of(config(), shape, decode_bucket(1)).tokens, 2)
    )


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_generates_the_same(backend):
    """Through the compiled steps, with preemption: the tokens of plain JAX, or a near-tie."""
    outputs = {}
    for attention in (PLAIN, Attention.all_by(backend, interpret=True)):
        runner = make_runner(attention)
        engine = make_engine(make_scheduler(num_pages=NUM_PAGES), runner)
        for index, prompt in enumerate(PROMPTS):
            engine.add_request(str(index), prompt, SamplingParams(max_tokens=12, ignore_eos=True))
        outputs[attention] = drain(engine)
        # Mosaic's interpreter compiles things of its own.
        assert attention.decode == "mosaic" or runner.compilations_after_warmup == 0
    for index, prompt in enumerate(PROMPTS):
        plain, ours = (list(outputs[a][str(index)].outputs[0].token_ids) for a in outputs)
        assert len(ours) == 12 and outputs[list(outputs)[1]][str(index)].error is None
        if ours != plain:
            at = next(i for i, pair in enumerate(zip(plain, ours, strict=True)) if pair[0] != pair[1])
            model = PagedModel(config("float32"), params("float32"), max_len=64)
            row = model.log_probs([prompt + plain[:at]])[0][-1]
            assert abs(row[plain[at]] - row[ours[at]]) < 0.1


def test_auto_is_plain_jax_unless_a_kernel_is_proven():
    """And where the proven one does not take the model, too."""
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, 6)
    arguments = ("auto", config(), shape, (PREFILL, DECODE))
    assert choose_attention(*arguments, find_device("cpu")) == PLAIN
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA Test", compute_capability="8.0")
    assert choose_attention(*arguments, gpu) == PLAIN
    assert choose_attention(*arguments, gpu, {"decode": "triton"}) == Attention("triton", "xla")
    assert choose_attention(*arguments, gpu, {"rotate": "triton"}) == Attention(rotate="triton")
    float32 = ("auto", config("float32"), *arguments[2:])
    assert choose_attention(*float32, gpu, {"decode": "triton"}) == PLAIN


def test_what_auto_means_is_described():
    cpu, hopper = find_device("cpu"), types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    assert describe(config(), cpu).startswith("xla; mosaic (device cpu: ")
    if HAS_MOSAIC:
        assert describe(config(), hopper) == "the first of mosaic, triton that passes its check, else xla"
    assert describe(config("float32"), hopper).startswith("xla; mosaic (")


def test_a_kernel_is_interpreted_on_a_cpu():
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, 6)
    chosen = choose_attention("triton", config(), shape, (PREFILL, DECODE), find_device("cpu"))
    assert chosen == Attention.all_by("triton", interpret=True)


def test_a_backend_that_cannot_run_the_model_says_why():
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, 6)
    with pytest.raises(ConfigError, match=r"attention_backend='triton'.*float32"):
        choose_attention("triton", config("float32"), shape, (PREFILL, DECODE), find_device("cpu"))
