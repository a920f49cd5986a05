"""Costs derived from a description of a device, not measured: a roofline, and a launch for each kernel.

They rank policies and sizes. They do not say what a machine does: `jbatch bench calibrate` measures that.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.measure.floor import Floor, floor_of
from jbatch.config import ModelConfig
from jbatch.sim.cost import HostCost
from jbatch.sim.load import Load

KERNELS_PER_LAYER = 10.5  # of a compiled decode step: counted, see docs/kernels.md


class Hardware(NamedTuple):
    """A device, by its data sheet, and how much of that is taken to be reached."""

    name: str
    read_bytes_per_s: float
    gemm_flop_per_s: float  # dense, bfloat16
    memory_bytes: int
    reached: float = 0.8  # share of both rates
    launch_s: float = 2e-6  # of a kernel within a graph
    host: HostCost = HostCost(request_s=60e-6, step_s=100e-6, slot_s=0.8e-6)


HARDWARE = {
    "h200": Hardware("NVIDIA H200", 4.8e12, 989e12, 141 * 10**9),
    "a100": Hardware("NVIDIA A100 80GB", 2.04e12, 312e12, 80 * 10**9),
}


class Derived(NamedTuple):
    """Costs of a model's steps on hardware that is only described."""

    floor: Floor
    launches_s: float  # of a step
    host: HostCost

    def step_s(self, load: Load) -> float:
        """Seconds of a step's roofline, padding included, and of its launches."""
        bucket, steps = load.bucket, load.bucket.steps
        draws = bucket.slots + min(64, bucket.tokens // 16)
        decoding = self.floor.step_s(bucket.num_places, draws, load.keys // steps, load.keys // steps)
        reading = self.floor.attention_s(load.tokens and load.pairs // max(1, load.tokens), load.pairs)
        return steps * (decoding + self.launches_s) + reading


def derive(hardware: Hardware, model: ModelConfig) -> Derived:
    """The costs of a model in bfloat16."""
    floor = floor_of(
        model, hardware.reached * hardware.read_bytes_per_s, hardware.reached * hardware.gemm_flop_per_s
    )
    return Derived(floor, hardware.launch_s * KERNELS_PER_LAYER * model.num_layers, hardware.host)


def num_pages(hardware: Hardware, model: ModelConfig, page_size: int, share: float) -> int:
    """Pages that fit beside the weights into a share of the memory; fewer than 2 hold nothing."""
    floor = floor_of(model, 1.0, 1.0)
    weights = (floor.layer_params + 2 * floor.head_params) * floor.itemsize
    return int(share * hardware.memory_bytes - weights) // (page_size * model.kv_bytes_per_token)
