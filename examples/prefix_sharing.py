"""What prompts have in common is computed once: python examples/prefix_sharing.py"""

from pathlib import Path

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"
EXAMPLES = "3+4=7 10+5=15 20+22=42 8+9=17 6+6=12 "
QUESTIONS = ["12+345=", "1+1=", "77+5=", "400+99="]


def main(model=MODEL):
    """Print how much of each prompt was in the cache: while it is empty, once it is filled, and salted."""
    params = SamplingParams(temperature=0, max_tokens=4)
    prompts = [EXAMPLES + question for question in QUESTIONS]
    salted = [{"prompt": prompt, "cache_salt": "another user"} for prompt in prompts]
    with LLM(model, device="cpu", max_num_seqs=4, page_size=16, max_num_batched_tokens=64) as llm:
        for name, asked in (("first", prompts[:1]), ("then", prompts), ("salted", salted[:1])):
            outputs = llm.generate(asked, params)
            print(name, [f"{out.num_cached_tokens} of {len(out.prompt_token_ids)}" for out in outputs])


if __name__ == "__main__":
    main()
