"""XLA's options for a GPU's decode programs: data, by compute capability.

XLA cuts the inner axis of small products into pieces before its autotuner looks at them, and sums the
pieces in kernels of their own. Without that a layer of Llama-3-8B at 64 slots launches two kernels less and
writes 21 MB less. Whether the products themselves are as fast whole, only a GPU can say: `bench.gpu_suite`
compares.
"""

from __future__ import annotations

from typing import Any

from jbatch.seam.bucket import Bucket
from pallas_kernels.implementations import compute_capability

WHOLE_PRODUCTS = {"xla_gpu_experimental_force_split_k": 1}
DECODE: dict[str, dict[str, Any]] = {"9.0": WHOLE_PRODUCTS, "8.0": WHOLE_PRODUCTS}


def options_for(device: Any, bucket: Bucket) -> dict[str, Any]:
    """Those that the program of a bucket is compiled with, by name; for a step with prompts none."""
    return {} if bucket.tokens else DECODE.get(compute_capability(device), {})
