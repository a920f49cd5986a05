"""Steps compiled for this CPU: what they move, and what they keep beside weights and cache."""

import functools
import math

import jax
import pytest

from jbatch.config import ModelConfig
from jbatch.device.model import abstract_params
from jbatch.device.programs import StepSpec, program_for
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape
from tools.gate import hlo

# Every weight is larger than all that belongs to the few tokens of a step.
CONFIG = ModelConfig(1024, 256, 512, 1, 8, 4, 32, 512, dtype="float32", tie_word_embeddings=True)
STEPS = {"decode": decode_bucket(4), "prefill": prefill_bucket(16), "mixed": Bucket(4, 16)}
SMALLEST = min(4 * math.prod(leaf.shape) for leaf in abstract_params(CONFIG).values() if len(leaf.shape) > 1)


@functools.cache
def compiled(step, num_pages):
    shape = StateShape(num_rows=4, num_pages=num_pages, page_size=16, pages_per_seq=32)
    spec = StepSpec(CONFIG, shape, jax.devices("cpu")[0])
    return spec.compile(program_for(STEPS[step], Sampler.GREEDY))


@pytest.mark.parametrize("step", STEPS)
def test_no_weight_is_copied(step):
    """Nor transposed, alone or inside of a fusion."""
    module = hlo.parse(compiled(step, 40).as_text())
    instructions = [each for computation in module.computations.values() for each in computation]
    assert any(each.opcode == "while" for each in instructions), "the text was not understood"
    moved = [
        f"{each.opcode} {each.shape} {each.op_name}"
        for each in instructions
        if each.opcode in ("copy", "transpose") and each.nbytes >= SMALLEST and "gather" not in each.op_name
    ]
    assert not moved


def test_nothing_grows_with_the_pool():
    """A mixed step has all that the others have."""
    small, large = (compiled("mixed", num_pages).memory_analysis() for num_pages in (40, 4000))
    assert small.temp_size_in_bytes == large.temp_size_in_bytes
    pool = 4000 * 16 * CONFIG.kv_bytes_per_token
    assert large.alias_size_in_bytes >= pool, "the cache is updated in place"
