"""PyTorch's engines beside jbatch on the same device, weights and requests: `jbatch bench compare`, with few
buckets. Steps and requests are in compare-NAME.json, which is up to date after each arm and each repeat.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from bench.gpu_suite.task import TINY_OPTIONS, NotHere, Row, Task
from bench.options import Setting
from jbatch.distribution import install_hint

ARMS = {
    "torch-paged": ("torch-paged", "torch-paged-mosaic", "replay"),
    "torch-hf": ("hf-continuous", "hf-generate"),
}
SLOTS, LENGTH_SCALE, TINY_SCALE = 16, 0.25, 0.1
NUM_PROMPTS = {"torch-paged": 256, "torch-hf": 64}  # transformers' engines take longer
TINY_PROMPTS = 4
OPTIONS: dict[str, Any] = {  # each bucket is compiled twice
    "max_num_seqs": SLOTS,
    "decode_buckets": (8, SLOTS),
    "max_num_batched_tokens": 128,
    "token_buckets": (128,),
    "num_pages": 1 + 4 * SLOTS,
    "max_model_len": 192,
    "samplers": ("greedy",),
    "show_progress": False,
}


def run(task: Task) -> None:
    """A row for each arm."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotHere(f"{' and '.join(missing)} not installed: {install_hint('bench')}")
    from bench.compare.command import compare
    from bench.flags import Comparison

    model, options = ("demo", TINY_OPTIONS) if task.tiny else ("llama3.2-1b", OPTIONS)
    file = task.out / f"compare-{task.part.removeprefix('torch-')}.json"
    arms = list(ARMS[task.part][: 1 if task.tiny else None])
    results = compare(
        Comparison(model, arms=arms, output_json=file),
        Setting(num_prompts=TINY_PROMPTS if task.tiny else NUM_PROMPTS[task.part]),
        options | {"attention_backend": task.backend()},
        {"length_scale": TINY_SCALE if task.tiny else LENGTH_SCALE},
    )
    for name, arm in results.arms.items():
        row: Row = {"case": f"{model} {name}", "arm": name, "status": "ok", "repeats": list(arm.repeats)}
        if arm.not_run is not None:
            row |= {"status": "not run", "reason": arm.not_run}
        task.emit(row | {key: arm.extra[key] for key in ("attention", "execution") if key in arm.extra})
