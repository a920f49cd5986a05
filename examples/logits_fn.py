"""A function of one's own, compiled into every step: python examples/logits_fn.py"""

from pathlib import Path

import jax.numpy as jnp

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"


def only_even_digits(logits, state):
    """Rule out the digits 1, 3, 5, 7 and 9, for every second request."""
    odd = jnp.array([18 + digit for digit in (1, 3, 5, 7, 9)])  # the demo model's token 18 is "0"
    ruled_out = logits.at[:, odd].set(-jnp.inf)
    return jnp.where((state.request_idx % 2 == 1)[:, None], ruled_out, logits)


def main(model=MODEL):
    """Print answers to one question, with odd digits and without."""
    with LLM(
        model,
        logits_fn=only_even_digits,
        device="cpu",
        max_num_seqs=2,
        page_size=16,
        max_num_batched_tokens=64,
    ) as llm:
        outputs = llm.generate(["12+345=", "12+345="], SamplingParams(temperature=0, max_tokens=8))
    for output in outputs:
        print(output.prompt, output.outputs[0].text)


if __name__ == "__main__":
    main()
