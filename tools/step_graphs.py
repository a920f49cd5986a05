"""Compile a decode step on the device at hand, and count the CUDA graphs that it became: there should be one.

    python -m tools.step_graphs [--model llama3-8b] [--attention mosaic triton] [--json FILE] [--keep DIR]

XLA's own description of what it launches is read from a dump. `--keep` saves that, and the device's exact
description for tools/targets, from which machines without the device compile. Nothing runs but XLA's
autotuning. `--smoke` compiles a tiny model, on a CPU too, which has no graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure.shapes import SHAPES, model_config
from jbatch.config import ModelConfig
from tools.gate import hlo

SLOTS, NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN = 64, 4096, 64, 8192
TINY = ModelConfig(96, 64, 96, 2, 4, 2, 64, 256)
TARGET_DESCRIPTION = "*.gpu_target_config.pbtxt"


def compile_step(config: ModelConfig, slots: int, name: str, dump: Path) -> dict[str, Any]:
    """A row: how many graphs a greedy decode step has with an implementation of attention, or why none."""
    import jax

    from jbatch.device.backend import Attention
    from jbatch.device.programs import Program, StepSpec
    from jbatch.sampling_params import Sampler
    from jbatch.seam.bucket import decode_bucket
    from jbatch.seam.shape import StateShape

    device = jax.devices()[0]
    max_len = min(MAX_MODEL_LEN, config.max_position_embeddings)
    shape = StateShape(slots, NUM_PAGES, PAGE_SIZE, max_len // PAGE_SIZE)
    attention = Attention(name, name, interpret=device.platform == "cpu" and name != "xla")
    spec = StepSpec(config, shape, device, attention)
    row: dict[str, Any] = {"attention": name, "layers": config.num_layers, "slots": slots}
    before = set(dump.iterdir())
    begin = time.monotonic()
    try:
        compiled = spec.compile(Program(decode_bucket(slots), Sampler.GREEDY))
    except Exception as error:  # other implementations go on
        return row | {"status": "failed", "reason": " ".join(str(error).split())[:400]}
    launches = launched(set(dump.iterdir()) - before)
    memory: Any = compiled.memory_analysis()
    return row | {
        "status": "ok",
        "graphs": hlo.num_command_buffers(launches) if launches else None,
        "launches": len(launches.splitlines()),
        "temp_bytes": memory.temp_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "compile_s": round(time.monotonic() - begin, 1),
    }


def launched(files: set[Path]) -> str:
    """What the step launches, from its files in XLA's dump: after XLA's last passes, where they changed it.
    Empty on a CPU."""
    mine = sorted(file for file in files if ".jit_step." in file.name)
    for name in ("thunk_sequence_after_thunk_passes", "thunk_sequence"):
        for file in mine:
            if file.name.endswith(f".{name}.txt"):
                return file.read_text()
    return ""


def keep(dump: Path, folder: Path) -> None:
    """Save what XLA launches, and the first description of the device."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*dump.glob("*.jit_step.*thunk_sequence*"), *sorted(dump.glob(TARGET_DESCRIPTION))[:1]]:
        shutil.copy(file, folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--attention", nargs="+", default=["mosaic", "triton"])
    parser.add_argument("--smoke", action="store_true", help="a tiny model, on any device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="save parts of XLA's dump there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jbatch-graphs-") as folder:
        dump = Path(folder)
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}"
        import jax

        jax.config.update("jax_enable_compilation_cache", False)  # what is not compiled is not dumped
        layers = SHAPES[args.model].num_layers
        config = TINY if args.smoke else model_config(args.model, layers, MAX_MODEL_LEN)
        rows = [compile_step(config, 4 if args.smoke else SLOTS, name, dump) for name in args.attention]
        if args.keep:
            keep(dump, args.keep)
    model = "tiny" if args.smoke else args.model
    for row in rows:
        print(f"{model}, {row['attention']} attention: {row['status']}, {row.get('graphs')} CUDA graphs", row)
    if args.json:
        result = {"schema": 1, "kind": "step-graphs", "tiny": args.smoke, "model": model}
        result |= {"device": jax.devices()[0].device_kind, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    on_gpu = jax.devices()[0].platform != "cpu"
    return 1 if on_gpu and any(row.get("graphs") != 1 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
