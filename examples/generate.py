"""Complete prompts, several times each: python examples/generate.py [MODEL]"""

import sys
from pathlib import Path

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"
PROMPTS = ["12+345=", "once upon a time", "count 97 to 101="]


def main(model=MODEL):
    """Print each prompt with its two answers, and why they ended."""
    with LLM(model, device="cpu", max_num_seqs=4, page_size=16, max_num_batched_tokens=64) as llm:
        params = SamplingParams(n=2, temperature=1, seed=1, max_tokens=16)
        for output in llm.generate(PROMPTS, params):
            for sample in output.outputs:
                print(f"{output.prompt!r} -> {sample.text!r} ({sample.finish_reason})")


if __name__ == "__main__":
    main(*sys.argv[1:])
