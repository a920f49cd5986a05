"""Compile the engine's steps for a GPU that is not here, and check what the programs do with memory.

    python tools/compile_for.py h200

One target per process: XLA compiles a second one wrongly. Needs the extra `aot`, and no driver. No
autotuning happens this way, so the choice of GEMMs differs on the device; layouts, aliasing, copies and
the structure of the program do not. The table goes to stdout, the rows to build/gate-TARGET.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script from a checkout

from jbatch.request import Sampler  # noqa: E402
from tools import hlo  # noqa: E402

MB = 2**20
MOVE_LIMIT = 8 * MB  # of a copy, transpose, gather, slice or conversion
TEMP_LIMIT = 64 * MB  # of decode's temporaries at 64 slots; logits and attention's blocks grow with the slots
KERNELS_PER_LAYER = 10
THIN = 2  # layers of the programs that others are compared with, also over half the pool
PAGE_SIZE, MAX_MODEL_LEN = 64, 8192
ATTENTION = "paged_attention"  # the scope of the op in the step


class Case(NamedTuple):
    """A step to compile."""

    model: str
    kind: str
    size: int  # slots of a decode step, tokens of a prefill step
    sampler: Sampler
    num_layers: int = 32
    pool_bytes: int = 34 * 10**9

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.size} {self.sampler.name.lower()}"


class Program(NamedTuple):
    """What a compiled step shows."""

    num_layers: int
    kv_bytes: int
    memory: dict[str, int]
    module: hlo.Module
    num_graphs: int | None


CASES = (
    Case("llama3-8b", "decode", 64, Sampler.GREEDY),
    Case("llama3-8b", "decode", 64, Sampler.FILTERED, num_layers=THIN),
    Case("llama3-8b", "decode", 256, Sampler.GREEDY, num_layers=THIN),
    Case("llama3-8b", "prefill", 2048, Sampler.FILTERED),
    Case("llama2-7b", "decode", 64, Sampler.GREEDY),
    Case("llama2-7b", "decode", 64, Sampler.FILTERED, num_layers=THIN),
    Case("llama2-7b", "prefill", 2048, Sampler.FILTERED),
)


def model_config(name: str, num_layers: int) -> Any:
    """The shape of a public model, with fewer layers."""
    from jbatch.config import ModelConfig, RopeConfig

    sizes = {
        "llama3-8b": {
            "vocab_size": 128256,
            "mlp_dim": 14336,
            "num_kv_heads": 8,
            "rope": RopeConfig(theta=5e5),
        },
        "llama2-7b": {"vocab_size": 32000, "mlp_dim": 11008, "num_kv_heads": 32},
    }[name]
    shape = {"embed_dim": 4096, "num_heads": 32, "head_dim": 128, "max_position_embeddings": MAX_MODEL_LEN}
    return ModelConfig(num_layers=num_layers, **shape, **sizes)


@functools.cache
def device_for(target: str) -> Any:
    """A device that can be compiled for, and nothing else."""
    from jax.experimental import topologies

    description = (ROOT / "tools" / "targets" / f"{target}.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=description, topology="1x1x1")
    return topology.devices[0]


def compile_case(case: Case, target: str, num_layers: int, num_pages: int) -> Program:
    """Compile one step of `num_layers` layers over a pool of `num_pages`."""
    from jbatch import plan, runner
    from jbatch.state import StateShape

    config = model_config(case.model, num_layers)
    shape = StateShape(256, num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
    decode = case.kind == "decode"
    bucket = plan.decode_bucket(case.size) if decode else plan.prefill_bucket(case.size, shape.num_rows)
    compiled = runner.compile_step(config, shape, runner.Program(bucket, case.sampler), device_for(target))
    stats = compiled.memory_analysis()
    memory = {
        field: getattr(stats, f"{field}_size_in_bytes") for field in ("argument", "output", "alias", "temp")
    }
    kv_bytes = num_pages * PAGE_SIZE * config.kv_bytes_per_token
    return Program(num_layers, kv_bytes, memory, hlo.parse(compiled.as_text()), _num_graphs())


@functools.cache
def dump_dir() -> tempfile.TemporaryDirectory:
    """Where XLA writes what it launches, until the process ends."""
    return tempfile.TemporaryDirectory(prefix="jbatch-gate-")


def _num_graphs() -> int | None:
    """CUDA graphs of the program compiled last, from XLA's dump of it; None where XLA wrote none."""
    files = sorted(
        pathlib.Path(dump_dir().name).glob("*thunk_sequence_after_thunk_passes*"), key=os.path.getmtime
    )
    count = hlo.num_command_buffers(files[-1].read_text()) if files else None
    for file in pathlib.Path(dump_dir().name).iterdir():
        file.unlink()
    return count


def count_kernels(module: hlo.Module) -> dict[str, int]:
    """Launches: of attention (once, and per turn of its loops), of all else (once); loops and branches."""
    counts = dict.fromkeys(
        ("other", "attention", "attention_loop", "attention_while", "while", "conditional"), 0
    )
    for instruction, in_loop in module.executed():
        attention = ATTENTION in instruction.op_name
        if instruction.opcode in ("while", "conditional"):
            counts[f"attention_{instruction.opcode}" if attention else instruction.opcode] += 1
        if not hlo.is_kernel(instruction):
            continue
        if in_loop:
            counts["attention_loop"] += attention
        else:
            counts["attention" if attention else "other"] += 1
    return counts


def kernels_per_layer(full: Program, thin: Program) -> dict[str, float] | None:
    """What each layer adds to a program; None where there is only one number of layers."""
    layers = full.num_layers - thin.num_layers
    if not layers:
        return None
    many, few = count_kernels(full.module), count_kernels(thin.module)
    return {name: round((many[name] - few[name]) / layers, 2) for name in many}


def measure(case: Case, target: str) -> dict[str, Any]:
    """A row of the table: the step in full, and what thinner ones say of its layers and its pool."""
    begin = time.process_time()
    page_bytes = PAGE_SIZE * model_config(case.model, 32).kv_bytes_per_token  # of the whole model
    num_pages = case.pool_bytes // page_bytes
    full = compile_case(case, target, case.num_layers, num_pages)
    thin = full if case.num_layers == THIN else compile_case(case, target, THIN, num_pages)
    half = compile_case(case, target, THIN, num_pages // 2)
    return {
        "step": case.name,
        "target": target,
        "layers": case.num_layers,
        "pages": num_pages,
        "pool_bytes": full.kv_bytes,
        **{f"{field}_bytes": value for field, value in full.memory.items()},
        "temp_bytes_thin": thin.memory["temp"],
        "temp_bytes_half_pool": half.memory["temp"],
        "unwritten_outputs": hlo.unwritten_outputs(full.module),
        "large_moves": [_describe(p) for p in hlo.large_moves(full.module, move_limit(case))],
        "command_buffers": full.num_graphs,
        "kernels": count_kernels(full.module),
        "kernels_per_layer": kernels_per_layer(full, thin),
        "cpu_s": round(time.process_time() - begin, 1),
    }


def move_limit(case: Case) -> int:
    """A prefill step moves whole activations by right: its tokens' embeddings and queries."""
    tokens_bytes = case.size * 4096 * 2
    return MOVE_LIMIT if case.kind == "decode" else max(MOVE_LIMIT, tokens_bytes)


def _describe(placed: hlo.Placed) -> dict[str, Any]:
    instruction, in_loop = placed
    return {
        "name": instruction.name,
        "shape": instruction.shape,
        "bytes": instruction.nbytes,
        "in_loop": in_loop,
        "attention": ATTENTION in instruction.op_name,
        "op_name": instruction.op_name,
    }


def failures(row: dict[str, Any], case: Case) -> list[str]:
    """What must hold whatever computes attention, and does not."""
    found = []
    if row["alias_bytes"] < row["pool_bytes"]:
        found.append(
            f"the cache is not updated in place: {row['alias_bytes']} of {row['pool_bytes']} bytes alias"
        )
    if row["unwritten_outputs"]:
        found.append(f"returned as they came in: {', '.join(row['unwritten_outputs'])}")
    if row["temp_bytes_thin"] != row["temp_bytes_half_pool"]:
        sizes = f"{row['temp_bytes_half_pool']} and {row['temp_bytes_thin']}"
        found.append(f"temporaries depend on the pool: {sizes} bytes for half of it and for all")
    for move in row["large_moves"]:
        if not move["attention"]:
            found.append(
                f"{move['name']} moves {move['bytes'] / MB:.0f} MB: {move['shape']} ({move['op_name']})"
            )
    if case.kind == "decode" and row["temp_bytes"] > temp_limit(case):
        found.append(f"{row['temp_bytes'] / MB:.1f} MB of temporaries: at most {temp_limit(case) / MB:.0f}")
    return found


def temp_limit(case: Case) -> int:
    """Of a decode step, in bytes: 64 MB per 64 slots; sampling also keeps scaled logits, keys and weights. On
    top, what plain-JAX attention gathers: a block of keys and one of values per slot."""
    from pallas_kernels.reference import BLOCK_KV

    config = model_config(case.model, 1)
    blocks = 2 * case.size * BLOCK_KV * config.num_kv_heads * config.head_dim * 2
    return temp_goal(case) + blocks


def temp_goal(case: Case) -> int:
    """Of a decode step, in bytes, with a kernel for attention."""
    return TEMP_LIMIT * max(1, case.size // 64) * (1 if case.sampler == Sampler.GREEDY else 2)


def not_met(row: dict[str, Any], case: Case) -> list[str]:
    """Goals for the steps with a kernel that plain-JAX attention cannot meet."""
    found = []
    if loops := row["kernels"]["attention_while"]:
        found.append(f"{loops} loops over blocks of the cache, of a length that only the device knows")
    if row["command_buffers"] not in (None, 1):
        found.append(f"{row['command_buffers']} command buffers instead of 1")
    per_layer = row["kernels_per_layer"]
    if (
        case.kind == "decode"
        and per_layer
        and per_layer["other"] + per_layer["attention"] > KERNELS_PER_LAYER
    ):
        found.append(
            f"{per_layer['other']:g} + {per_layer['attention']:g} kernels per layer and "
            f"{per_layer['attention_loop']:g} per turn of its loop (goal: {KERNELS_PER_LAYER})"
        )
    if case.kind == "decode" and row["temp_bytes"] > temp_goal(case):
        found.append(f"{row['temp_bytes'] / MB:.1f} MB of temporaries (goal: {temp_goal(case) / MB:.0f})")
    moves = [move["bytes"] for move in row["large_moves"] if move["attention"]]
    if moves:
        found.append(f"{len(moves)} gathers or transposes of up to {max(moves) / MB:.0f} MB")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, for people."""
    head = ("step", "layers", "args GB", "pool GB", "alias GB", "temp MB", "2 layers", "half pool")
    head += ("kernels/layer", "attention", "its loop", "loops", "other loops", "branches", "graphs", "CPU s")
    lines = [head]
    for row in rows:
        per_layer = row["kernels_per_layer"]
        gigabytes = [f"{row[f'{name}_bytes'] / 1e9:.2f}" for name in ("argument", "pool", "alias")]
        temps = [
            f"{row[name] / MB:.1f}" for name in ("temp_bytes", "temp_bytes_thin", "temp_bytes_half_pool")
        ]
        names = ("other", "attention", "attention_loop")
        kernels = [f"{per_layer[name]:g}" if per_layer else "" for name in names]
        tail = [row["kernels"][name] for name in ("attention_while", "while", "conditional")]
        tail += [row["command_buffers"], row["cpu_s"]]
        lines.append((row["step"], row["layers"], *gigabytes, *temps, *kernels, *tail))
    widths = [max(len(str(line[idx])) for line in lines) for idx in range(len(head))]
    return "\n".join(
        "  ".join(str(cell).rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "target", choices=sorted(p.stem for p in (ROOT / "tools" / "targets").glob("*.txtpb"))
    )
    parser.add_argument("--only", default="", help="steps whose name contains this")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump_dir().name}"
    import jax

    rows, failed = [], []
    for case in CASES:
        if args.only in case.name:
            row = measure(case, args.target)
            row |= {"jax": jax.__version__, "failures": failures(row, case), "not_met": not_met(row, case)}
            failed += [f"{case.name}: {failure}" for failure in row["failures"]]
            rows.append(row)
    print(f"{args.target}, jax {jax.__version__}, plain-JAX attention\n{table(rows)}")
    for row in rows:
        print(f"not met by plain-JAX attention: {row['step']}: {'; '.join(row['not_met']) or 'nothing'}")
    out = ROOT / "build" / f"gate-{args.target}.json"
    out.parent.mkdir(exist_ok=True)
    result = {"schema": 1, "target": args.target, "jax": jax.__version__, "steps": rows, "kernels": []}
    out.write_text(json.dumps(result, indent=1) + "\n")
    for failure in failed:
        print(f"FAILED {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
