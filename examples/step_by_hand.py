"""Drive the engine step by step, and look at what each step does: python examples/step_by_hand.py"""

from pathlib import Path

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"
PROMPTS = ["12+345=", "count 97 to 99=", "reverse apple="]


def main(model=MODEL):
    """Print a line for each step: who sits in which row, and who came in. The third joins when one leaves."""
    with LLM(model, device="cpu", max_num_seqs=2, page_size=16, max_num_batched_tokens=64) as llm:
        engine = llm.engine
        for idx, prompt in enumerate(PROMPTS):
            engine.add_request(str(idx), prompt, SamplingParams(temperature=0))
        while engine.has_unfinished:
            step = engine.step()
            if (plan := step.plan) is not None:
                rows = dict(zip(plan.rows, plan.seq_ids, strict=True))
                slots = " ".join(str(rows.get(row, "-")) for row in range(2))
                reads = [chunk.seq_id for chunk in plan.chunks]
                print(f"step {plan.step_idx:2}  rows {slots}" + (f"  reads {reads}" if reads else ""))
            for output in step.outputs:
                print(f"         {output.request_id} has ended: {output.outputs[0].text!r}")
        print(engine.summary.describe())


if __name__ == "__main__":
    main()
