"""A conversation, and texts as they grow: python examples/chat_and_stream.py (pip install '.[chat]')

The demo model knows no conversations, so the template makes a plain prompt of the last message. A model that
does has a template of its own.
"""

import asyncio
from pathlib import Path

from jbatch import LLM, SamplingParams

MODEL = Path(__file__).parent.parent / "weights" / "demo"
TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] }}="
GREEDY = SamplingParams(temperature=0)


async def read(llm, prompt):
    """The pieces of one answer, while others are read from the same batch."""
    return [delta.text async for delta in llm.astream(prompt, GREEDY)]


async def read_all(llm, prompts):
    """The pieces of all answers."""
    return await asyncio.gather(*(read(llm, prompt) for prompt in prompts))


def main(model=MODEL):
    """Print the answer to a conversation, and two answers in pieces."""
    with LLM(
        model, chat_template=TEMPLATE, device="cpu", max_num_seqs=4, page_size=16, max_num_batched_tokens=64
    ) as llm:
        messages = [{"role": "user", "content": "sort 83120"}]
        print(llm.chat(messages, GREEDY)[0].outputs[0].text)
        for pieces in asyncio.run(read_all(llm, ["12+345=", "reverse apple="])):
            print(pieces)


if __name__ == "__main__":
    main()
