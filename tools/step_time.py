"""What a decode step would take on an H200, from what its compiled program launches, reads and writes.

    python -m tools.step_time [--model llama3-8b] [--slots 64] [--context 1024] [--json FILE]

An ESTIMATE: nothing is timed. It compiles for a GPU that is not here (extra `aot`), with two and with four
layers, and adds up each kernel's bytes over rates that other engines reach. By it, programs can be compared;
what a step takes, a GPU says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure.floor import floor_of
from jbatch.model_dir.shapes import SHAPES, model_config
from tools.gate import hlo
from tools.gate import target as gpu_target
from tools.gate.case import Case
from tools.gate.steps import ATTENTION, MAX_MODEL_LEN, compile_case

READ_RATE = 4.3e12  # bytes a second that an H200 reads, of 4.8e12 on paper
GEMM_RATE = 790e12  # FLOP a second, bfloat16
CACHE_RATE = 6e12  # bytes a second of what the last kernel wrote: it lies in L2
LAUNCH_S, GEMM_LAUNCH_S = 2e-6, 1.5e-6  # of a node of a graph
ATTENTION_SHARE = 0.85  # of the read rate, that a paged decode kernel reaches
GEMM_SHARES = (
    (200e6, 0.88),
    (100e6, 0.85),
    (50e6, 0.80),
    (25e6, 0.72),
    (0.0, 0.58),
)  # by the weight's bytes
LEAST_WEIGHT = 2**20  # bytes; a norm's is smaller
FEW, MANY = 2, 4  # layers
NUM_PAGES = 800
MODELS, SLOTS = ("llama2-7b", "llama3-8b", "llama3.2-1b"), (1, 64, 256)


class Launch(NamedTuple):
    """A kernel of the program."""

    name: str
    kind: str  # "gemm", "attention" or "other"
    weight_bytes: int  # of a product's larger operand
    other_bytes: int  # read and written beside


def launches(module: hlo.Module, num_pages: int, table_bytes: int) -> Iterator[Launch]:
    """The kernels of a step. The cache, and the embedding that tokens are gathered from, count for nothing:
    little of them is read."""
    entry = module.computations[module.entry]
    sizes = {i.name: 0 if f"[{num_pages}," in i.shape else i.nbytes for i in entry}
    parameters = {i.name for i in entry if i.opcode == "parameter"}
    parameters |= {
        i.name for i in entry if i.opcode == "bitcast" and parameters.intersection(hlo.operands(i))
    }
    for instruction in filter(hlo.is_kernel, entry):
        names = hlo.operands(instruction)
        weight = max((sizes.get(name, 0) for name in names if name in parameters), default=0)
        moved = sum(sizes.get(name, 0) for name in names) - weight + sizes[instruction.name]
        if ATTENTION in instruction.op_name:
            yield Launch(instruction.name, "attention", 0, 0)
        elif weight < LEAST_WEIGHT:
            yield Launch(instruction.name, "other", 0, moved + weight)
        elif weight == table_bytes and "dot" not in instruction.op_name + instruction.name:  # gathered from
            yield Launch(instruction.name, "other", 0, moved)
        else:
            yield Launch(instruction.name, "gemm", weight, moved)


def seconds(launch: Launch, slots: int, kv_bytes: float) -> float:
    """Of one kernel, for a row of each slot. `kv_bytes`: what it reads of the cache, if it is attention."""
    if launch.kind == "attention":
        return LAUNCH_S + kv_bytes / (ATTENTION_SHARE * READ_RATE)
    if launch.kind == "gemm":
        share = next(share for least, share in GEMM_SHARES if launch.weight_bytes >= least)
        flop = slots * launch.weight_bytes  # two for each weight, of two bytes
        return GEMM_LAUNCH_S + max(launch.weight_bytes / READ_RATE, flop / GEMM_RATE) / share
    return LAUNCH_S + launch.other_bytes / CACHE_RATE


def estimate(model: str, slots: int, context: int, target: gpu_target.Target) -> dict[str, Any]:
    """A row: seconds of a step of the whole model, its floor, and where they go."""
    from jbatch.sampler import Sampler
    from jbatch.seam.bucket import decode_bucket

    case = Case(model, decode_bucket(slots), Sampler.GREEDY, "mosaic")
    whole = model_config(model, SHAPES[model].num_layers, MAX_MODEL_LEN)
    kv_bytes = slots * context * whole.kv_bytes_per_token / whole.num_layers
    table_bytes = 2 * whole.vocab_size * whole.embed_dim
    spent = {}
    for layers in (FEW, MANY):
        program = compile_case(case, target, layers, NUM_PAGES)
        found = list(launches(program.module, NUM_PAGES, table_bytes))
        per_kernel = kv_bytes * layers / sum(launch.kind == "attention" for launch in found)
        spent[layers] = {
            kind: sum(seconds(launch, slots, per_kernel) for launch in found if launch.kind == kind)
            for kind in ("gemm", "attention", "other")
        } | {"kernels": len(found)}
    total = {
        kind: few + (whole.num_layers - FEW) * (spent[MANY][kind] - few) / (MANY - FEW)
        for kind, few in spent[FEW].items()
    }
    kernels = total.pop("kernels")
    floor = floor_of(whole, READ_RATE, GEMM_RATE).decode_s(slots, slots * context)
    return {
        "model": model,
        "slots": slots,
        "context": context,
        "floor_ms": 1e3 * floor,
        "estimate_ms": 1e3 * sum(total.values()),
        "share_of_floor": floor / sum(total.values()),
        "kernels": round(kernels),
        **{f"{kind}_ms": 1e3 * value for kind, value in total.items()},
    }


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    parts = ", ".join(f"{kind} {row[f'{kind}_ms']:.2f}" for kind in ("gemm", "attention", "other"))
    return (
        f"{row['model']:12} {row['slots']:4} x {row['context']:<5} floor {row['floor_ms']:6.2f} ms,"
        f" estimate {row['estimate_ms']:6.2f} ms ({100 * row['share_of_floor']:.0f} %):"
        f" {parts}; {row['kernels']} kernels"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("an estimate from compiled programs, not a measurement; H200, Mosaic attention, greedy")
    rows = []
    with tempfile.TemporaryDirectory(prefix="jbatch-step-time-") as dump:
        target = gpu_target.set_up("h200", Path(dump))
        for model in [args.model] if args.model else MODELS:
            for slots in [args.slots] if args.slots else SLOTS:
                rows.append(estimate(model, slots, args.context, target))
                print(line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"estimate": True, "target": "h200", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
