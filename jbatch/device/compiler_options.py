"""XLA's options for a GPU's decode programs: data, by compute capability.

WHOLE_PRODUCTS    XLA cuts the inner axis of small products into pieces before its autotuner looks at them,
                  and sums the pieces in kernels of their own. Without that a layer of Llama-3-8B at 64
                  slots launches two kernels less and writes 21 MB less.
SUMS_IN_PRODUCTS  The residual is summed at the end of the product before it. Otherwise XLA sums it anew in
                  each norm behind, over up to five arrays, and in a kernel of its own in every second layer.
                  jax 0.12 does so by itself. jax 0.10 would put SiLU at the beginning of the product, too,
                  where each tile computes it again.

Whether such products are as fast, only a GPU can say: `bench.gpu_suite` compares.
"""

from __future__ import annotations

from typing import Any

import jax

from jbatch.seam.bucket import Bucket
from pallas_kernels.implementations import compute_capability

WHOLE_PRODUCTS = {"xla_gpu_experimental_force_split_k": 1}
SUMS_IN_PRODUCTS = {"xla_gpu_experimental_gemm_fusion_v2": True}


def options_for(
    device: Any, bucket: Bucket, jax_version: tuple[int, ...] = jax.__version_info__
) -> dict[str, Any]:
    """Those that the program of a bucket is compiled with, by name; for a step with prompts none."""
    if bucket.tokens or compute_capability(device) not in ("9.0", "8.0"):
        return {}
    return WHOLE_PRODUCTS | (SUMS_IN_PRODUCTS if jax_version[:2] == (0, 11) else {})
