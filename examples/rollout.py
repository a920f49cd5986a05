"""Policy gradient in one process: an LLM draws answers, JAX trains on them, and the LLM goes on with what
came of it.

The demo model is rewarded for short answers: `python examples/rollout.py`. Each step prints how long they
are, and by how much the trainer's log-probabilities of the drawn tokens differ from the engine's.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax  # flax needs it, too

from jbatch import LLM, SamplingParams
from jbatch.device.model import abstract_params, build
from pallas_kernels import rotated

PROMPTS = ["once upon a time", "spell cat=", "dear reader", "in winter", "how are you?", "count the sheep"]
SAMPLING = SamplingParams(n=8, temperature=1.0, max_tokens=24, logprobs=0)
MODEL = Path(__file__).parent.parent / "weights" / "demo"
WIDTH = 48  # tokens of a row: a prompt, its answer, padding
OPTIMIZER = optax.adam(1e-4)


def attend(layer_idx, qkv, cos, sin):
    """Causal attention without a cache. Padding is behind a row's tokens, where none of them looks."""
    return jax.nn.dot_product_attention(*rotated(qkv, cos, sin), is_causal=True)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=(0, 1))
def train(params, state, config, tokens, drawn, advantages):
    """One step of REINFORCE; with it the log-probability of each token behind those before it."""

    def loss(params):
        model = build(config, tuple(params[name] for name in abstract_params(config)))
        hidden = model(tokens, jnp.broadcast_to(jnp.arange(WIDTH), tokens.shape), attend)
        every = jax.nn.log_softmax(model.logits(hidden)[:, :-1])
        logprobs = jnp.take_along_axis(every, tokens[:, 1:, None], axis=2)[..., 0]
        return -(advantages[:, None] * logprobs * drawn).sum() / drawn.sum(), logprobs

    grads, logprobs = jax.grad(loss, has_aux=True)(params)
    updates, state = OPTIMIZER.update(grads, state)
    return optax.apply_updates(params, updates), state, logprobs


def as_arrays(outputs):
    """Tokens, the engine's log-probabilities of those that were drawn, which these are, and their numbers."""
    samples = [(output.prompt_token_ids, sample) for output in outputs for sample in output.outputs]
    tokens = np.zeros((len(samples), WIDTH), np.int32)
    logprobs, drawn = np.zeros((len(samples), WIDTH - 1)), np.zeros((len(samples), WIDTH - 1), bool)
    for row, (prompt, sample) in enumerate(samples):
        end = len(prompt) + len(sample.token_ids)
        tokens[row, :end] = [*prompt, *sample.token_ids]
        drawn[row, len(prompt) - 1 : end - 1] = True
        entries = zip(sample.logprobs, sample.token_ids, strict=True)
        logprobs[row, drawn[row]] = [entry[token].logprob for entry, token in entries]
    return tokens, logprobs, drawn, drawn.sum(axis=1)


def main(num_steps=20):
    """The mean length of the answers in each step."""
    options = dict(device="cpu", max_model_len=64, max_num_seqs=48, decode_buckets=(48,), token_buckets=(64,))
    with LLM(MODEL, page_size=16, show_progress=False, **options) as llm:
        params = jax.tree.map(jnp.copy, llm.weights())  # the trainer's own: `train` takes them over
        state, means = OPTIMIZER.init(params), []
        for step in range(num_steps):
            tokens, engine, drawn, lengths = as_arrays(llm.generate(PROMPTS, SAMPLING, use_tqdm=False))
            of_prompt = lengths.reshape(len(PROMPTS), -1).mean(axis=1).repeat(SAMPLING.n)
            params, state, trainer = train(
                params, state, llm.model_config, tokens, drawn, of_prompt - lengths
            )
            llm.update_weights(params, weight_version=step + 1)
            difference, means = np.abs(trainer - engine)[drawn].max(), [*means, lengths.mean()]
            print(f"step {step:2}  {means[-1]:5.2f} tokens in an answer  largest difference {difference:.1e}")
    return means


if __name__ == "__main__":
    main()
