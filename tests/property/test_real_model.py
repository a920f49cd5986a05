"""A tiny real model under random schedules: every request gets the tokens that it gets alone."""

import functools
import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device import sampling
from jbatch.host.limits import StepLimits
from jbatch.host.pages import NULL_PAGE
from jbatch.host.policy import MODES
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.seam.rows import RowSetup, row_columns
from tests.helpers.invariants import check_invariants, dead_pages
from tests.helpers.paged import PagedModel
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import (
    EIGHT,
    MAX_MODEL_LEN,
    MIXED,
    NUM_PAGES,
    NUM_ROWS,
    PAGE_SIZE,
    SEVERAL,
    buckets_for,
    drain,
    make_engine,
    make_scheduler,
    shared_runner,
    tiny_config,
    tiny_params,
)

NUM_SCHEDULES = sized(50, 300)
NUM_REQUESTS = sized(40, 200)  # different ones, of which each schedule draws some
NEAR_TIE = 1e-4
STEM = random.Random(0).choices(range(96), k=37)  # of many prompts: two pages, and a part of one
RULES = [mode for mode in MODES if mode != "static-full"]  # which goes by the clock, to the steps of static
CHUNKS = (PAGE_SIZE, 24, 40, 64)  # the token budgets of a step


@functools.cache
def asked(idx):
    """Request `idx`: its prompt and parameters."""
    rng = random.Random(idx)
    prompt = rng.choices(range(96), k=rng.choice((rng.randint(1, 14), rng.randint(1, 60))))
    if len(prompt) > PAGE_SIZE:
        prompt = (STEM + prompt)[: len(prompt)]
    sampled = rng.choice(
        ({}, {}, {}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 5},
         {"temperature": 1.0, "top_p": 0.7}, {"temperature": 0.8, "min_p": 0.1, "top_p": 0.9, "top_k": 20})
    )  # fmt: skip
    most = rng.choice((2, 8, 24, 24))
    n = random.Random(-1 - idx).choice((1, 1, 1, 2, 3, 6)) if sampled else 1
    return prompt, SamplingParams(
        **{"temperature": 0.0, **sampled},
        n=n,
        seed=rng.randrange(2**32),
        max_tokens=rng.randint(1, most),
        stop_token_ids=rng.sample(range(96), rng.choice((0, 0, 8))),
    )


def num_tokens(idx):
    prompt, params = asked(idx)
    return len(prompt) + params.max_tokens


@functools.cache
def alone(idx):
    """Each of its samples has the engine for itself."""
    prompt, params = asked(idx)
    engine = make_engine(make_scheduler(limits=lambda view: StepLimits(64, 1)))
    engine.add_request("alone", prompt, params)
    outputs = drain(engine)["alone"].outputs
    return [(output.token_ids, output.finish_reason, output.stop_reason) for output in outputs]


@functools.partial(jax.jit, donate_argnums=0)
def _poison(kv_pages, dead):
    return tuple(jnp.where(dead[:, None, None, None, None], jnp.nan, pages) for pages in kv_pages)


def poison_free_pages(scheduler):
    """NaN in every page that nobody will read as it is, the null page among them."""
    dead = np.zeros(NUM_PAGES, bool)
    dead[[NULL_PAGE, *dead_pages(scheduler)]] = True
    runner = shared_runner()
    runner._state = runner._state._replace(kv_pages=_poison(runner._state.kv_pages, dead))


def random_engine(rng):
    mode = rng.choice(("continuous", "continuous", *RULES))
    buckets = {
        "usual": buckets_for(mode),
        "4 steps": (*buckets_for(mode), SEVERAL),
        "8 steps": (*buckets_for(mode), EIGHT),
        "one shape": (MIXED,),
    }
    shapes = rng.choice(list(buckets)[: 3 + MODES[mode].refill])
    num_pages = rng.choice((rng.randint(2, 8), rng.randint(2, NUM_PAGES)))
    chunk = rng.choice(CHUNKS)
    limits = StepLimits(chunk, rng.randint(1, NUM_ROWS))
    caches = rng.random() < 0.6
    scheduler = make_scheduler(
        mode,
        num_pages=num_pages,
        limits=lambda view: limits,
        buckets=buckets[shapes],
        enable_prefix_caching=caches,
    )
    seen = Counter({mode: 1, f"chunk {chunk}": 1, shapes: 1, f"cache {caches}": 1})
    return make_engine(scheduler, overlap=rng.random() < 0.5), seen


def force_preemption(scheduler):
    """Of the youngest, as a full pool does. The one admitted first is never preempted, nor a padded batch."""
    if len(scheduler.running) > 1 and not scheduler.config.admission.hold_finished:
        scheduler.lifecycle.preempt(scheduler.lifecycle.running[-1])


def run_schedule(seed):
    """Totals of what happened; asserts that the tokens are right."""
    rng = random.Random(seed)
    engine, counts = random_engine(rng)
    room = engine.scheduler.max_seq_len
    todo = rng.sample([idx for idx in range(NUM_REQUESTS) if num_tokens(idx) <= room], rng.randint(8, 12))
    arrival_share, abort_share = rng.choice((0.2, 0.8, 1.0)), rng.choice((0, 0, 0.02))
    preempt_share = rng.choice((0, 0.5, 1.0, 1.0))
    outputs = {}
    while todo or engine.has_unfinished:
        while todo and rng.random() < arrival_share:
            idx = todo.pop()
            engine.add_request(str(idx), *asked(idx))
        if engine.requests.unfinished and rng.random() < abort_share:
            engine.abort(rng.choice(list(engine.requests.unfinished)))
        if rng.random() < preempt_share:
            force_preemption(engine.scheduler)
        step = engine.step()
        outputs |= {int(output.request_id): output for output in step.outputs}
        for chunk in step.plan.chunks if step.plan else ():
            counts["shared"] += max(0, len(chunk.draws) - 1) * chunk.end
        poison_free_pages(engine.scheduler)
        check_invariants(engine.scheduler)
    for idx, output in outputs.items():
        counts[str(output.outputs[0].finish_reason)] += 1
        counts["near-ties"] += sum(check_output(idx, sample) for sample in output.outputs)
        counts["samples"] += len(output.outputs) - 1
    summary = engine.summary
    counts.update(preempted=sum(o.metrics.num_preemptions for o in outputs.values()), requests=len(outputs))
    return counts + Counter(recomputed=summary.recomputed, steps=summary.num_steps, found=summary.found)


def check_output(idx, output):
    """The tokens are those of the request alone (a beginning of them, if aborted). True for a near-tie."""
    expected, reason, stop_reason = alone(idx)[output.index]
    if output.finish_reason == FinishReason.ABORT:
        expected = expected[: len(output.token_ids)]
    elif output.token_ids == expected:
        assert (output.finish_reason, output.stop_reason) == (reason, stop_reason)
    if output.token_ids == expected:
        return False
    both = enumerate(zip(output.token_ids, expected, strict=False))
    first = next(i for i, (token, other) in both if token != other)
    gap = score_gap(idx, expected[:first], output.index)
    assert gap <= NEAR_TIE, f"request {idx}: {output.token_ids} is not {expected}: gap {gap} at token {first}"
    return True


def score_gap(idx, generated, sample_idx):
    """Between the two best scores (with their noise, where the request samples) of the next token."""
    prompt, params = asked(idx)
    tokens = prompt + generated
    logits = jnp.asarray(paged_model().log_probs([tokens])[0][-1:])
    if not params.greedy:
        row = row_columns(RowSetup(top_k=params.top_k, top_p=params.top_p, min_p=params.min_p))
        rows = jnp.asarray(row[None])
        seeds = jnp.asarray([params.seed], jnp.uint32).view(jnp.int32)
        logits = sampling.keep_likely(logits / params.temperature, rows)
        logits += sampling._noise(
            seeds, jnp.asarray([sample_idx]), jnp.asarray([len(tokens)]), logits.shape[-1]
        )
    second, first = np.partition(np.asarray(logits[0]), -2)[-2:]
    return first - second


@functools.cache
def paged_model():
    return PagedModel(tiny_config(), tiny_params(), MAX_MODEL_LEN)


def test_random_schedules():
    """To see one again: `run_schedule(seed)`."""
    totals = Counter()
    for seed in range(NUM_SCHEDULES):
        try:
            totals += run_schedule(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    print(dict(totals))
    assert totals["requests"] >= 8 * NUM_SCHEDULES
    assert totals["found"] >= 10 * NUM_SCHEDULES and totals["cache False"] >= NUM_SCHEDULES / 5
    assert totals["near-ties"] <= sized(1, 5)
    assert min(totals[mode] for mode in RULES) >= NUM_SCHEDULES / 10
    assert min(totals[f"{steps} steps"] for steps in (4, 8)) >= NUM_SCHEDULES / 10
    assert min(totals[f"chunk {chunk}"] for chunk in CHUNKS) >= NUM_SCHEDULES / 10
    assert min(totals[reason] for reason in ("length", "stop", "abort")) >= NUM_SCHEDULES / 6
    assert totals["samples"] >= NUM_SCHEDULES and totals["shared"] >= 10 * NUM_SCHEDULES
    assert totals["preempted"] >= 4 * NUM_SCHEDULES / 3 and totals["recomputed"] >= 10 * NUM_SCHEDULES


# Equal bits: one shape for all steps, the same chunks, never preempted.


def keys_and_values(scheduler):
    """Of each running sequence: the bytes of its cache, layer by layer, per position."""
    pages = [np.asarray(leaf) for leaf in shared_runner()._state.kv_pages]
    found = {}
    for sequence in scheduler.running:
        layers = [layer[sequence.pages].swapaxes(1, 3).swapaxes(0, 1) for layer in pages]
        by_token = np.stack([layer.swapaxes(0, 1).reshape(-1, *layer.shape[2:]) for layer in layers], axis=1)
        found[sequence.request.request_id] = by_token[: sequence.num_cached].copy()
    return found


def run_and_watch(requests, rng):
    """Tokens of each request, and its last known keys and values."""
    engine = make_engine(make_scheduler(buckets=(MIXED,)), overlap=False)
    todo, caches, outputs = list(requests), {}, {}
    while todo or engine.has_unfinished:
        while todo and rng.random() < 0.3:
            prompt, params = requests[idx := todo.pop()]
            engine.add_request(idx, prompt, params)
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step().outputs}
        caches |= keys_and_values(engine.scheduler)
    assert engine.summary.num_preempted == 0
    return outputs, caches


@pytest.mark.parametrize("seed", range(5))
def test_equal_bits(seed):
    """Prompts of at most 16 tokens, so that four of them always fit a step whole."""
    rng = random.Random(seed)
    requests = {
        str(i): (rng.choices(range(96), k=rng.randint(1, 16)), SamplingParams(temperature=0, max_tokens=24))
        for i in range(12)
    }
    outputs, caches = run_and_watch(requests, rng)
    for idx, one in requests.items():
        tokens, cache = run_and_watch({idx: one}, rng)
        assert outputs[idx] == tokens[idx]
        assert len(cache[idx]) >= len(one[0]) + 20 and cache[idx].any(axis=(1, 2, 3)).all()
        assert caches[idx].tobytes() == cache[idx].tobytes()


# Logits that are not finite.


def replace_param(monkeypatch, name, change):
    runner = shared_runner()
    params = dict(zip(tiny_params(), runner._params.leaves, strict=True))
    monkeypatch.setattr(runner._params, "leaves", tuple((params | {name: change(params[name])}).values()))


def test_a_row_that_is_not_finite_ends_alone(monkeypatch):
    """The embedding of one token is NaN, and one prompt holds it: its neighbours do not notice."""
    neighbours = [idx for idx in range(20) if asked(idx)[1].greedy and num_tokens(idx) > 8][:6]
    seen = {token for idx in neighbours for token in (*asked(idx)[0], *alone(idx)[0][0])}
    poisoned = next(token for token in range(96) if token not in seen)

    replace_param(monkeypatch, "embedding", lambda leaf: leaf.at[poisoned].set(jnp.nan))
    engine = make_engine()
    for idx in neighbours[:3]:
        engine.add_request(str(idx), *asked(idx))
    engine.add_request("poisoned", [5, poisoned, 9], SamplingParams(max_tokens=8))
    for idx in neighbours[3:]:
        engine.add_request(str(idx), *asked(idx))
    outputs = drain(engine)

    failed = outputs.pop("poisoned")
    assert failed.outputs[0].finish_reason == "error" and failed.outputs[0].token_ids == []
    assert "not finite at position 3" in failed.error
    assert {int(idx): output.outputs[0].token_ids for idx, output in outputs.items()} == {
        idx: alone(idx)[0][0] for idx in neighbours
    }


def test_infinite_logits_are_not_finite_either(monkeypatch):
    replace_param(monkeypatch, "unembedding", lambda leaf: leaf * 3e38)
    engine = make_engine()
    engine.add_request("r", [1, 2], SamplingParams(max_tokens=8))
    assert drain(engine)["r"].outputs[0].finish_reason == "error"
