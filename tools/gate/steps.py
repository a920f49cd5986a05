"""The engine's steps, compiled for a GPU that is not here, and what the programs do with memory."""

from __future__ import annotations

import collections
import re
import time
from typing import Any, NamedTuple

from bench.measure.shapes import SHAPES, model_config
from jbatch.sampling_params import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket, room_of
from jbatch.seam.shape import StateShape
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
# Of the state of features, what only row data writes.
ONLY_READ = ("extra__bias", "extra__bad_words___words", "extra__counts___in_prompt", "extra__logprob_ids")
NO_PAGES = ("state_rows", "state_block_tables")  # what the program that copies pages returns as it came
QUICK = ("llama3-8b decode 64 greedy", "llama3.2-1b decode 64 greedy", "llama3-8b prefill 2048 filtered")
CUBLAS = {"xla_gpu_enable_triton_gemm": False}


class Case(NamedTuple):
    """A step to compile, or the program that copies pages."""

    model: str
    bucket: Bucket | None  # None: page copies
    sampler: Sampler
    attention: str
    num_layers: int = THIN
    pool_bytes: int = 34 * 10**9  # of the whole model
    layer_kernels: bool = False  # also list what a layer launches

    @property
    def name(self) -> str:
        if self.bucket is None:
            return f"{self.model} page copies"
        slots, tokens, steps = self.bucket
        if not tokens:
            size = f"decode {slots}" if steps == 1 else f"decode {slots} x {steps}"
        else:
            size = f"mixed {slots}+{tokens}" if slots else f"prefill {tokens}"
        return f"{self.model} {size} {self.sampler.name.lower()} {self.attention}"

    @property
    def slots(self) -> int:
        return self.bucket.slots if self.bucket is not None else 0

    @property
    def decodes(self) -> bool:
        """Whether it is a step of decoding sequences alone: it has less to move."""
        return self.bucket is not None and not self.bucket.tokens


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
        Case("llama3-8b", decode, greedy, best, num_layers=32, layer_kernels=True),
        *(Case("llama3-8b", decode, sampler, best) for sampler in others),
        Case("llama3-8b", decode_bucket(256), greedy, best),
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
        "large_moves": [_describe(p) for p in hlo.large_moves(full.module, move_limit(case))],
        "trip_counts": hlo.trip_counts(full.module),
        "attention_trip_counts": hlo.trip_counts(full.module, ATTENTION),
        "command_buffers": full.num_graphs,
        "host_branches": full.host_branches,
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


def compile_case(
    case: Case, target: Target, num_layers: int, num_pages: int, options: dict[str, Any] | None = None
) -> Program:
    """A case, for `num_layers` layers and a pool of `num_pages`, with the engine's options or with others."""
    from jbatch.device import programs
    from jbatch.device.backend import Attention
    from jbatch.device.compiler_options import options_for

    config = model_config(case.model, num_layers, MAX_MODEL_LEN)
    attention = Attention(case.attention, case.attention)
    spec = programs.StepSpec(config, state_shape(num_pages), target.device, attention)
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
    kv_bytes = num_pages * PAGE_SIZE * config.kv_bytes_per_token
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


def state_shape(num_pages: int) -> StateShape:
    """What the engine keeps."""
    return StateShape(NUM_ROWS, num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)


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
    """What may move by right: of a step with prompts whole activations, its tokens' embeddings and queries.

    One that reports log-probabilities keeps the model's own logits beside those without stop ids, so it
    copies them once. (One that processes logits, too, makes the others anyway.)
    """
    if case.bucket is None:
        return MOVE_LIMIT
    if case.decodes:
        copies = case.sampler.reports and not case.sampler.processes
        return max(MOVE_LIMIT, copies * case.bucket.slots * SHAPES[case.model].vocab_size * 4)
    return max(MOVE_LIMIT, case.bucket.num_places * SHAPES[case.model].embed_dim * 2)


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
    if unknown := row["attention_trip_counts"].count(None):
        found.append(f"{unknown} loops over blocks of the cache, of a length that only the device knows")
    if row["alias_bytes"] < row["pool_bytes"]:
        found.append(
            f"the cache is not updated in place: {row['alias_bytes']} of {row['pool_bytes']} bytes alias"
        )
    by_right = NO_PAGES if case.bucket is None else ONLY_READ
    unwritten = [name for name in row["unwritten_outputs"] if not name.startswith(by_right)]
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
    if case.decodes and row["temp_bytes"] > temp_limit(case):
        found.append(f"{row['temp_bytes'] / MB:.1f} MB of temporaries: at most {temp_limit(case) / MB:.0f}")
    steps = 1 if case.bucket is None else case.bucket.steps
    if steps > 1 and row["trip_counts"] != [steps]:
        found.append(f"loops of {row['trip_counts']} turns: one of {steps} is right")
    straight = case.attention != "xla" and not row["kernels"]["while"]  # a loop in sampling divides the graph
    if case.decodes and straight and row["command_buffers"] != 1:
        found.append(f"{row['command_buffers']} command buffers instead of 1")
    return found


def temp_limit(case: Case) -> int:
    """Of a decode step, in bytes: 64 MB per 64 slots; sampling also keeps scaled logits, keys and weights. On
    top, what plain-JAX attention gathers: a block of keys and one of values per slot."""
    from pallas_kernels.reference import BLOCK_KV

    limit = TEMP_LIMIT * max(1, case.slots // 64) * (1 if case.sampler == Sampler.GREEDY else 2)
    if case.attention != "xla":
        return limit
    shape = SHAPES[case.model]
    return limit + 2 * case.slots * BLOCK_KV * shape.num_kv_heads * shape.head_dim * 2


def not_met(row: dict[str, Any], case: Case) -> list[str]:
    """Goals that are not failures."""
    found = []
    if row["host_branches"]:
        found.append(f"{row['host_branches']} branches that the host takes, waiting for the device first")
    if case.bucket is not None and row["command_buffers"] != 1:
        found.append(f"{row['command_buffers']} command buffers instead of 1")
    per_layer = row["kernels_per_layer"]
    if case.decodes and per_layer:
        num_kernels = per_layer["other"] + per_layer["attention"]
        cublas = row["cublas_layer_kernels"]
        if num_kernels > KERNELS_PER_LAYER:
            others = f", {len(cublas)} with cuBLAS" if cublas else ""
            found.append(f"{num_kernels:g} kernels per layer{others} (goal: {KERNELS_PER_LAYER})")
    moves = [move["bytes"] for move in row["large_moves"]]
    if moves:
        found.append(f"{len(moves)} gathers or transposes of up to {max(moves) / MB:.0f} MB")
    return found
