"""Batching compared on one engine's weights and programs: python examples/compare.py

The same requests, with the same output lengths, in each mode. Steps and slots are counted, not timed.
"""

from pathlib import Path

import numpy as np

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"
MODES = ("unbatched", "static-padded", "static", "continuous")


def main(model=MODEL):
    """Print a line for each mode: its steps, and how much of what they computed was wanted."""
    lengths = np.random.default_rng(0).choice([4, 4, 4, 40], size=32).tolist()
    sizes = dict(max_num_seqs=4, page_size=16, max_num_batched_tokens=64)
    with LLM(model, device="cpu", samplers=["plain"], **sizes) as llm:  # no other draws are compiled
        for mode in MODES:
            engine = llm.new_engine(mode=mode)
            for idx, length in enumerate(lengths):
                params = SamplingParams(max_tokens=length, ignore_eos=True)
                engine.add_request(str(idx), "count 1 to 9=", params)
            while engine.has_unfinished:
                engine.step()
            print(f"{mode:14} {engine.summary.describe()}")


if __name__ == "__main__":
    main()
