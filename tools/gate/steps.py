"""The engine's steps, compiled for a GPU that is not here, and what the programs do with memory."""

from __future__ import annotations

import collections
import re
import time
from typing import Any, NamedTuple

from bench.measure.shapes import SHAPES, model_config
from jbatch.host.plan import Bucket, decode_bucket, prefill_bucket
from jbatch.sampling_params import Sampler
from tools.gate import hlo
from tools.gate.target import Target, compiling, thunks

MB = 2**20
MOVE_LIMIT = 8 * MB  # of a copy, transpose, gather, slice or conversion
TEMP_LIMIT = 64 * MB  # of decode's temporaries at 64 slots; logits and attention's blocks grow with the slots
KERNELS_PER_LAYER = 10
THIN = 2  # layers of the programs that others are compared with, also over half the pool
PAGE_SIZE, MAX_MODEL_LEN = 64, 8192
NUM_ROWS = 256  # of the engine's state
ATTENTION = "paged_attention"  # the scope of the op in the step
# Of the EXTENDED steps' own state, what only prefill steps and RowData write.
ONLY_READ = ("extra_in_prompt", "extra_bias", "extra_bad_words", "extra_logprob_ids")
CUBLAS = {"xla_gpu_enable_triton_gemm": False}


class Case(NamedTuple):
    """A step to compile."""

    model: str
    kind: str
    size: int  # slots of a decode step, tokens of a prefill step
    sampler: Sampler
    attention: str
    num_layers: int = THIN
    pool_bytes: int = 34 * 10**9  # of the whole model
    layer_kernels: bool = False  # also list what a layer launches

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.size} {self.sampler.name.lower()} {self.attention}"


class Program(NamedTuple):
    """What a compiled step shows."""

    num_layers: int
    num_pages: int
    kv_bytes: int
    memory: dict[str, int]
    module: hlo.Module
    num_graphs: int


def cases(target: str, jax_version: tuple[int, ...]) -> list[Case]:
    """In full what nothing else shows: that a whole decode step is one graph over one pool."""
    best = "mosaic" if target == "h200" else "triton"
    greedy, filtered = Sampler.GREEDY, Sampler.FILTERED
    if jax_version < (0, 11):
        return [Case("llama3-8b", "decode", 64, greedy, attention) for attention in ("triton", "xla")]
    found = [
        Case("llama3-8b", "decode", 64, greedy, best, num_layers=32, layer_kernels=True),
        Case("llama3-8b", "decode", 64, filtered, best),
        Case("llama3-8b", "decode", 64, Sampler.EXTENDED, best),
        Case("llama3-8b", "decode", 256, greedy, best),
        Case("llama3-8b", "prefill", 2048, filtered, best),
        Case("llama2-7b", "decode", 64, greedy, best, num_layers=32),
        Case("llama3.2-1b", "decode", 64, greedy, best, pool_bytes=125 * 10**9),
        Case("llama3-8b", "decode", 64, greedy, "xla"),
        Case("llama3-8b", "prefill", 2048, filtered, "xla"),
    ]
    if best != "triton":
        found.append(Case("llama3-8b", "decode", 64, greedy, "triton"))
    return found


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
        "large_moves": [_describe(p) for p in hlo.large_moves(full.module, move_limit(case))],
        "command_buffers": full.num_graphs,
        "kernels": count_kernels(full.module),
        "kernels_per_layer": kernels_per_layer(full, thin),
        "layer_kernels": layer_kernels(full, thin) if case.layer_kernels else None,
        "cublas_layer_kernels": cublas_layer_kernels(case, target, num_pages) if case.layer_kernels else None,
    }
    return row | {
        "cpu_s": round(time.process_time() - begin, 1),
        "failures": failures(row, case),
        "not_met": not_met(row, case),
    }


def bucket_of(case: Case) -> Bucket:
    """The compiled shape of a step."""
    if case.kind == "decode":
        return decode_bucket(case.size)
    return prefill_bucket(case.size, NUM_ROWS)


def compile_case(
    case: Case, target: Target, num_layers: int, num_pages: int, options: dict[str, Any] | None = None
) -> Program:
    """Compile one step of `num_layers` layers over a pool of `num_pages`."""
    from jbatch.device import runner
    from jbatch.device.backend import Attention
    from jbatch.device.state import StateShape

    config = model_config(case.model, num_layers, MAX_MODEL_LEN)
    shape = StateShape(NUM_ROWS, num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
    program = runner.Program(bucket_of(case), case.sampler)
    attention = Attention(case.attention, case.attention)
    with compiling(target):
        lowered = runner.lower_step(config, shape, program, target.device, attention)
        compiled = lowered.compile(options)
    stats = compiled.memory_analysis()
    memory = {
        field: getattr(stats, f"{field}_size_in_bytes") for field in ("argument", "output", "alias", "temp")
    }
    kv_bytes = num_pages * PAGE_SIZE * config.kv_bytes_per_token
    num_graphs = hlo.num_command_buffers(thunks(target))
    return Program(num_layers, num_pages, kv_bytes, memory, hlo.parse(compiled.as_text() or ""), num_graphs)


def enough_pages(case: Case) -> int:
    """Twice the pages of every slot's longest sequence: with more, a work list does not grow any more."""
    return 2 * bucket_of(case).slots * (MAX_MODEL_LEN // PAGE_SIZE)


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
    return {name: round((many[name] - few[name]) / layers, 1) for name in many}


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


def cublas_layer_kernels(case: Case, target: Target, num_pages: int) -> list[str]:
    """The same with the library's GEMMs. Without autotuning XLA takes its own, split over K, whose sums are
    more launches; what a device would choose is between the two."""
    few, many = (compile_case(case, target, layers, num_pages, CUBLAS) for layers in (THIN, 10))
    return layer_kernels(many, few)


def move_limit(case: Case) -> int:
    """A prefill step moves whole activations by right: its tokens' embeddings and queries."""
    tokens_bytes = case.size * SHAPES[case.model].embed_dim * 2
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
    """What must hold, and does not; less of plain-JAX attention, which gathers by blocks, in loops."""
    found = []
    if row["alias_bytes"] < row["pool_bytes"]:
        found.append(
            f"the cache is not updated in place: {row['alias_bytes']} of {row['pool_bytes']} bytes alias"
        )
    unwritten = [name for name in row["unwritten_outputs"] if not name.startswith(ONLY_READ)]
    if unwritten:
        found.append(f"returned as they came in: {', '.join(unwritten)}")
    if row["temp_bytes_thin"] != row["temp_bytes_half_pool"]:
        sizes = f"{row['temp_bytes_half_pool']} and {row['temp_bytes_thin']}"
        found.append(f"temporaries depend on the pool: {sizes} bytes for half of it and for all")
    for move in row["large_moves"]:
        if case.attention != "xla" or not move["attention"]:
            found.append(
                f"{move['name']} moves {move['bytes'] / MB:.0f} MB: {move['shape']} ({move['op_name']})"
            )
    if case.kind == "decode" and row["temp_bytes"] > temp_limit(case):
        found.append(f"{row['temp_bytes'] / MB:.1f} MB of temporaries: at most {temp_limit(case) / MB:.0f}")
    straight = case.attention != "xla" and not row["kernels"]["while"]  # a loop in sampling divides the graph
    if case.kind == "decode" and straight and row["command_buffers"] != 1:
        found.append(f"{row['command_buffers']} command buffers instead of 1")
    return found


def temp_limit(case: Case) -> int:
    """Of a decode step, in bytes: 64 MB per 64 slots; sampling also keeps scaled logits, keys and weights. On
    top, what plain-JAX attention gathers: a block of keys and one of values per slot."""
    from pallas_kernels.reference import BLOCK_KV

    limit = TEMP_LIMIT * max(1, case.size // 64) * (1 if case.sampler == Sampler.GREEDY else 2)
    if case.attention != "xla":
        return limit
    shape = SHAPES[case.model]
    return limit + 2 * case.size * BLOCK_KV * shape.num_kv_heads * shape.head_dim * 2


def not_met(row: dict[str, Any], case: Case) -> list[str]:
    """Goals that are not failures."""
    found = []
    if loops := row["kernels"]["attention_while"]:
        found.append(f"{loops} loops over blocks of the cache, of a length that only the device knows")
    if row["command_buffers"] != 1:
        found.append(f"{row['command_buffers']} command buffers instead of 1")
    per_layer = row["kernels_per_layer"]
    if case.kind == "decode" and per_layer:
        num_kernels = per_layer["other"] + per_layer["attention"]
        cublas = row["cublas_layer_kernels"]
        if num_kernels > KERNELS_PER_LAYER:
            others = f", {len(cublas)} with cuBLAS" if cublas else ""
            found.append(f"{num_kernels:g} kernels per layer{others} (goal: {KERNELS_PER_LAYER})")
    moves = [move["bytes"] for move in row["large_moves"]]
    if moves:
        found.append(f"{len(moves)} gathers or transposes of up to {max(moves) / MB:.0f} MB")
    return found
