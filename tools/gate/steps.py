"""The engine's steps, compiled for a GPU that is not here, and what the programs do with memory."""

from __future__ import annotations

import collections
import os
import re
import time
from typing import Any, NamedTuple

from jbatch.model_dir.shapes import SHAPES, model_config
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket, room_of
from tools.gate import hlo, limits
from tools.gate.case import MAX_MODEL_LEN, PAGE_SIZE, THIN, Case, state_shape
from tools.gate.target import Target, compiling, thunks

FEW = 6  # layers, to count what each adds
# With 8B's weights 88 % of the device's memory, as an engine takes.
POOLS = {"h200": 108 * 10**9, "a100": 54 * 10**9}
ATTENTION = "paged_attention"  # the scope of the op in the step
QUICK = ("llama3-8b decode 64 greedy", "llama3.2-1b decode 64 greedy", "llama3-8b prefill 2048 filtered")


class Program(NamedTuple):
    """What a compiled program shows."""

    num_layers: int
    num_pages: int
    kv_bytes: int
    memory: dict[str, int]
    module: hlo.Module
    num_graphs: int
    host_branches: int


def cases(target: str, jax_version: tuple[int, ...]) -> list[Case]:
    """In full what nothing else shows: that a whole decode step is one graph over one pool."""
    best = "mosaic" if target == "h200" else "triton"
    greedy, filtered = Sampler.GREEDY, Sampler.FILTERED
    decode, prefill, mixed = decode_bucket(64), prefill_bucket(2048), Bucket(64, 2048)
    if jax_version < (0, 11):
        return [Case("llama3-8b", decode, greedy, attention) for attention in ("triton", "xla")]
    others = (filtered, Sampler.LOGPROBS, Sampler.PROCESSED, Sampler.EXTENDED)
    found = [
        Case("llama3-8b", decode, greedy, best, num_layers=32, pool_bytes=POOLS[target], layer_kernels=True),
        *(Case("llama3-8b", decode, sampler, best) for sampler in others),
        Case("llama3-8b", decode_bucket(1), greedy, best, num_layers=FEW),
        Case("llama3-8b", decode_bucket(256), greedy, best, num_layers=FEW),
        Case("llama3-8b", prefill, filtered, best),
        Case("llama3-8b", mixed, filtered, best),
        Case("llama3-8b", None, greedy, "xla"),
        Case("llama2-7b", decode, greedy, best, num_layers=32),
        Case("llama3.2-1b", decode, greedy, best, pool_bytes=125 * 10**9),
        Case("llama3.2-1b", Bucket(64, 0, 8), greedy, best),
        Case("llama3-8b", decode, greedy, "xla"),
        Case("llama3-8b", prefill, filtered, "xla"),
    ]
    if best != "triton":
        found.append(Case("llama3-8b", decode, greedy, "triton"))
    return found


def cases_on_several(num_ranks: int) -> list[Case]:
    """On H200s of one machine: what they exchange, and what each of them keeps."""
    greedy, filtered, best = Sampler.GREEDY, Sampler.FILTERED, "mosaic"
    found = [
        Case("llama3-8b", decode_bucket(64), greedy, best, num_layers=FEW),
        Case("llama3-8b", decode_bucket(64), filtered, best),
        Case("llama3-8b", Bucket(64, 2048), filtered, best),
    ]
    return [case._replace(num_ranks=num_ranks) for case in found]


def covering(cases: list[Case]) -> list[Case]:
    """The first of each that is quick, with all layers where any of them has all."""
    whole = any(case.num_layers > THIN for case in cases)
    found: dict[str, Case] = {}
    for case in cases:
        step = case.name.removesuffix(f" {case.attention}")
        num_layers = SHAPES[case.model].num_layers if whole and case.decodes else THIN
        if step in QUICK:
            found.setdefault(step, case._replace(num_layers=num_layers, layer_kernels=False))
    return list(found.values())


def measure(case: Case, target: Target) -> dict[str, Any]:
    """A row of the table: the step in full, and what thinner ones say of its layers and its pool."""
    import jax

    begin = time.process_time()
    whole = model_config(case.model, SHAPES[case.model].num_layers, MAX_MODEL_LEN)
    num_pages = case.pool_bytes // (PAGE_SIZE * whole.kv_bytes_per_token)
    many_pages = max(num_pages, enough_pages(case))
    thin = compile_case(case, target, THIN, many_pages)
    half = compile_case(case, target, THIN, many_pages // 2)
    full = thin if case.num_layers == THIN else compile_case(case, target, case.num_layers, num_pages)
    row = {
        "step": case.name,
        "attention": case.attention,
        "target": target.name,
        "jax": jax.__version__,
        "layers": case.num_layers,
        "pages": full.num_pages,
        "pool_bytes": full.kv_bytes,
        **{f"{field}_bytes": value for field, value in full.memory.items()},
        "temp_bytes_thin": thin.memory["temp"],
        "temp_bytes_half_pool": half.memory["temp"],
        "unwritten_outputs": hlo.unwritten_outputs(full.module),
        "large_moves": [_describe(p) for p in hlo.large_moves(full.module, limits.move_limit(case))],
        "trip_counts": hlo.trip_counts(full.module),
        "attention_trip_counts": hlo.trip_counts(full.module, ATTENTION),
        "command_buffers": full.num_graphs,
        "host_branches": full.host_branches,
        "kernels": count_kernels(full.module),
        "collectives": hlo.collectives(full.module),
        "collectives_in_graph": "+COLLECTIVES" in os.environ.get("XLA_FLAGS", ""),
        "readers_of_input": hlo.num_readers(full.module, "packed"),
        "rematerialised": hlo.num_rematerialised(full.module),
        "written_per_layer_bytes": written_per_layer(full, thin),
        "kernels_per_layer": kernels_per_layer(full, thin),
        "layer_kernels": layer_kernels(full, thin) if case.layer_kernels else None,
    }
    return row | {
        "cpu_s": round(time.process_time() - begin, 1),
        "failures": limits.failures(row, case),
        "not_met": limits.not_met(row, case),
    }


def compile_case(
    case: Case, target: Target, num_layers: int, num_pages: int, options: dict[str, Any] | None = None
) -> Program:
    """A case, for `num_layers` layers and a pool of `num_pages`, with the engine's options or with others."""
    from jbatch.device import programs
    from jbatch.device.backend import Attention
    from jbatch.device.compiler_options import options_for
    from jbatch.device.sharding import mesh_of

    config = model_config(case.model, num_layers, MAX_MODEL_LEN)
    attention = Attention.all_by(case.attention)
    mesh = mesh_of(target.devices, case.num_ranks)
    spec = programs.StepSpec(config, state_shape(num_pages), target.device, attention, mesh=mesh)
    with compiling(target):
        if case.bucket is None:
            compiled = spec.compile_copy()
        else:
            given = options_for(target.device, case.bucket) if options is None else options
            compiled = spec.lower(programs.Program(case.bucket, case.sampler)).compile(given)
    stats: Any = compiled.memory_analysis()
    memory = {
        field: getattr(stats, f"{field}_size_in_bytes") for field in ("argument", "output", "alias", "temp")
    }
    kv_bytes = num_pages * PAGE_SIZE * spec.part.kv_bytes_per_token
    launches = thunks(target)
    return Program(
        num_layers,
        num_pages,
        kv_bytes,
        memory,
        hlo.parse(compiled.as_text() or ""),
        hlo.num_command_buffers(launches),
        hlo.num_host_branches(launches),
    )


def enough_pages(case: Case) -> int:
    """Twice the pages of every longest sequence of a step: with more, a work list does not grow any more."""
    shape = state_shape(0)
    chunks = 0 if case.bucket is None else room_of(case.bucket, shape).chunks
    return 2 * (case.slots + chunks) * shape.pages_per_seq


def count_kernels(module: hlo.Module) -> dict[str, int]:
    """Launches: of attention (once, and per turn of its loops), of all else (once); loops and branches."""
    names = ("other", "attention", "attention_loop", "while", "conditional")
    counts = dict.fromkeys((*names, "attention_while", "attention_conditional"), 0)
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
    return {name: round((many[name] - few[name]) / layers, 1) for name in many}


def written_per_layer(full: Program, thin: Program) -> float | None:
    """Bytes that each layer's kernels write; but for the cache, and for attention, which fills a part of its
    arrays. None where there is only one number of layers."""
    layers = full.num_layers - thin.num_layers
    if not layers:
        return None
    many, few = (hlo.bytes_written(p.module, shape=f"[{p.num_pages},", scope=ATTENTION) for p in (full, thin))
    return (many - few) / layers


def layer_kernels(full: Program, thin: Program) -> list[str]:
    """The launches that each layer adds to a program, by where they come from in the traced function."""

    def launches(program: Program) -> collections.Counter[str]:
        found = (placed.instruction for placed in program.module.executed())
        return collections.Counter(
            _origin(instruction) for instruction in found if hlo.is_kernel(instruction)
        )

    layers = full.num_layers - thin.num_layers
    added, gone = launches(full) - launches(thin), launches(thin) - launches(full)
    for origin in gone.elements():  # a fusion of several results may be called after another one of them
        kernel = origin.split(":")[0]
        added.subtract([other for other in added if other.split(":")[0] == kernel][:1])
    return [origin for origin, count in added.items() for _ in range(round(count / layers))]


def _origin(instruction: hlo.Instruction) -> str:
    name = re.sub(r"[.\d]+$", "", instruction.name)
    return f"{name}: {instruction.op_name.removeprefix('jit(step)/')}"


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
