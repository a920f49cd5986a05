"""A small LLM's options, and what its tests ask."""

from jbatch import SamplingParams

# The sizes of tests/helpers/tiny_engine.py, so that the same programs are read from the cache.

SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": 16,
    "num_pages": 64,
    "decode_buckets": (4,),
    "token_buckets": (64,),
    "batch_wait_timeout_s": 0.01,
}


GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def ids_of(outputs):
    return [output.outputs[0].token_ids for output in outputs]
