"""Policy gradient in one process: an LLM draws answers, JAX trains on them, and the LLM goes on with what
came of it. Short answers are rewarded: python examples/rollout.py
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

MODEL = Path(__file__).parent.parent / "weights" / "demo"
PROMPTS = ["once upon a time", "spell cat=", "dear reader", "in winter", "how are you?", "count the sheep"]
SAMPLING = SamplingParams(n=8, max_tokens=24, logprobs=0)
WIDTH = 48  # tokens of a row: a prompt, its answer, padding
SIZES = dict(max_model_len=64, page_size=16, max_num_seqs=48, decode_buckets=(48,), token_buckets=(64,))
OPTIMIZER = optax.adam(1e-4)


def attend(layer_idx, qkv, cos, sin):
    """Causal attention without a cache. Padding is behind a row's tokens, where none of them looks."""
    return jax.nn.dot_product_attention(*rotated(qkv, cos, sin), is_causal=True)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=(0, 1))
def train(params, state, config, tokens, drawn, advantages):
    """One step of REINFORCE; with it the log-probability of each token but the first."""

    def loss(params):
        model = build(config, tuple(params[name] for name in abstract_params(config)))
        hidden = model(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), attend)
        every = jax.nn.log_softmax(model.logits(hidden)[:, :-1])
        logprobs = jnp.take_along_axis(every, tokens[:, 1:, None], axis=2)[..., 0]
        return -(advantages[:, None] * logprobs * drawn).sum() / drawn.sum(), logprobs

    grads, logprobs = jax.grad(loss, has_aux=True)(params)
    updates, state = OPTIMIZER.update(grads, state)
    return optax.apply_updates(params, updates), state, logprobs


def as_arrays(outputs):
    """The tokens of each sample; of all but the first, which were drawn, and with what log-probability."""
    samples = [(output.prompt_token_ids, sample) for output in outputs for sample in output.outputs]
    tokens, drawn, logprobs = (np.zeros((len(samples), WIDTH), kind) for kind in (np.int32, bool, float))
    for row, (prompt, sample) in enumerate(samples):
        own = slice(len(prompt), len(prompt) + len(sample.token_ids))
        tokens[row, : own.stop], drawn[row, own] = [*prompt, *sample.token_ids], True
        logprobs[row, own] = [next(iter(entry.values())).logprob for entry in sample.logprobs]
    return tokens, drawn[:, 1:], logprobs[:, 1:]


def main(num_steps=20):
    """Print, and give, how long the answers are in each step."""
    with LLM(MODEL, device="cpu", show_progress=False, **SIZES) as llm:
        params = jax.tree.map(jnp.copy, llm.weights())  # the trainer's own: `train` takes them over
        state, means = OPTIMIZER.init(params), []
        for step in range(num_steps):
            tokens, drawn, engine = as_arrays(llm.generate(PROMPTS, SAMPLING, use_tqdm=False))
            lengths = drawn.sum(axis=1)
            advantages = lengths.reshape(len(PROMPTS), -1).mean(axis=1).repeat(SAMPLING.n) - lengths
            params, state, trainer = train(params, state, llm.model_config, tokens, drawn, advantages)
            llm.update_weights(params, weight_version=step + 1)
            difference, means = np.abs(trainer - engine)[drawn].max(), [*means, lengths.mean()]
            print(f"step {step:2}  {means[-1]:5.2f} tokens in an answer  largest difference {difference:.1e}")
    return means


if __name__ == "__main__":
    main()
