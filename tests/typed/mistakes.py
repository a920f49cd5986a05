"""What a user may get wrong: `make lint` runs mypy on it, which must find each mistake and nothing else.

An ignored error that is none fails as well (`warn_unused_ignores`). The file is never run.
"""

from jbatch import LLM, RequestOutput, SamplingParams

params = SamplingParams(temperature=0.5, max_tokens=8)
llm = LLM("dir")
outputs: list[RequestOutput] = llm.generate(["a"], params, priority=[1])

LLM("dir", max_num_seqs=4, decode_buckets=[4], policy="sjf", kv_cache_memory_bytes="4GiB")
LLM("dir", max_num_seq=4)  # type: ignore[call-arg]
LLM("dir", page_size="big")  # type: ignore[arg-type]
LLM("dir", policy="lifo")  # type: ignore[arg-type]
SamplingParams(temprature=1)  # type: ignore[call-arg]
SamplingParams(0.5)  # type: ignore[call-arg, arg-type]
SamplingParams(temperature="hot")  # type: ignore[arg-type]
llm.generate(5)  # type: ignore[arg-type]
llm.generate("a", {"temperature": 0})  # type: ignore[arg-type]
llm.generat("a")  # type: ignore[attr-defined]
llm.generate("a", params, priorities=[1])  # type: ignore[call-arg]
_ = outputs[0].text  # type: ignore[attr-defined]
text: int = outputs[0].outputs[0].text  # type: ignore[assignment]
params.temperature = 1  # type: ignore[misc]
llm.beam_search("a")  # type: ignore[attr-defined]
