"""What bench.kernels compares, by name."""

from __future__ import annotations

from pallas_kernels.names import COMPILERS

# pallas_kernels' own, in the order of what is worth knowing first.
KERNELS = (COMPILERS[0], "xla", *COMPILERS[1:])
# Others', by op.
FOREIGN = {"decode": ("cudnn", "flashinfer", "flash-attn-3"), "prefill": ("flash-attn-3",)}
NAMES = (*KERNELS, *FOREIGN["decode"])
