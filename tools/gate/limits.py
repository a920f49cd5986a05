"""What a compiled step must keep to: faults of the programs, and goals that they do not reach."""

from __future__ import annotations

from typing import Any

from jbatch.model_dir.shapes import SHAPES
from jbatch.sampler import Sampler
from jbatch.seam.step_output import num_draws
from tools.gate.case import Case, state_shape

MB = 2**20
MOVE_LIMIT = 8 * MB  # of a copy, transpose, gather, slice or conversion
TEMP_LIMIT = 40 * MB  # of decode's temporaries at 64 slots; logits and attention's blocks grow with the slots
KERNELS_PER_LAYER = 10  # of a decode step
KERNELS_PER_LAYER_TOGETHER = 13  # two all-reduces; and a residual is summed behind one, not in a product
WRITTEN_LIMIT = 9 * MB  # by a layer of a decode step of 64 slots, beside the cache and attention
WRITTEN_GOAL = 8 * MB
SAMPLING_TEMP_LIMIT = 128 * MB  # of those that draw: scaled logits, keys and weights
READERS_LIMIT = 8  # of the packed input, which has another address in each step: a graph's nodes are patched
PROCESSING_READERS_LIMIT = 16  # where rows' masks, biases and counts are looked up by it
LONE_READERS_LIMIT = 12  # of a step of one sequence: its row is a slice, made wherever it is used
LOOP_GRAPHS = 5  # two loops of known turns, and what is around them
# Of the state of features, what only row data writes.
ONLY_READ = ("extra__bias", "extra__bad_words___words", "extra__counts___in_prompt", "extra__logprob_ids")
NO_PAGES = ("state_rows", "state_block_tables")  # what the program that copies pages returns as it came


def move_limit(case: Case) -> int:
    """What may move by right: of a step with prompts whole activations, its tokens' embeddings and queries.

    One that reports log-probabilities keeps the model's own logits beside those without stop ids, so it
    copies them once. (One that processes logits, too, makes the others anyway.)
    """
    if case.bucket is None:
        return MOVE_LIMIT
    if case.num_ranks > 1:
        return max(MOVE_LIMIT, gathered_bytes(case))  # they come token by token, and are sorted once by draw
    if case.decodes:
        copies = case.sampler.reports and not case.sampler.processes
        return max(MOVE_LIMIT, copies * case.bucket.slots * SHAPES[case.model].vocab_size * 4)
    return max(MOVE_LIMIT, case.bucket.num_places * SHAPES[case.model].embed_dim * 2)


def gathered_bytes(case: Case) -> int:
    """Of the logits that several devices gather."""
    assert case.bucket is not None, "page copies gather none"
    return num_draws(case.bucket, state_shape(0)) * SHAPES[case.model].vocab_size * 4


def failures(row: dict[str, Any], case: Case) -> list[str]:
    """What must hold, and does not; less of plain-JAX attention, which gathers by blocks, in loops."""
    found = _memory_failures(row, case)
    if unknown := row["attention_trip_counts"].count(None):
        found.append(f"{unknown} loops over blocks of the cache, of a length that only the device knows")
    steps = 1 if case.bucket is None else case.bucket.steps
    if steps > 1 and row["trip_counts"] != [steps]:
        found.append(f"loops of {row['trip_counts']} turns: one of {steps} is right")
    if case.num_ranks > 1:
        expected = {"all-reduce": 2 * row["layers"] + 1, "all-gather": 1}
        if row["collectives"] != expected:
            found.append(f"devices exchange {row['collectives']} instead of {expected}")
    if row["rematerialised"]:
        found.append(f"{row['rematerialised']} values computed twice, to save memory that is there")
    if case.decodes and case.attention != "xla":
        found += _launch_failures(row, case)
    return found


def _memory_failures(row: dict[str, Any], case: Case) -> list[str]:
    found = []
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
    return found


def _launch_failures(row: dict[str, Any], case: Case) -> list[str]:
    """Of a decode step with kernels: a loop in sampling divides the graph."""
    found = []
    graphs = LOOP_GRAPHS if row["kernels"]["while"] else 1
    if not row["collectives_in_graph"]:  # each ends one
        graphs += sum(row["collectives"].values())
    if row["command_buffers"] < 1 or row["command_buffers"] > graphs:
        found.append(f"{row['command_buffers']} command buffers instead of {graphs}")
    readers = PROCESSING_READERS_LIMIT if case.sampler.processes else READERS_LIMIT
    if case.slots == 1:
        readers = max(readers, LONE_READERS_LIMIT)
    if row["readers_of_input"] > readers:
        found.append(f"{row['readers_of_input']} kernels read the packed input: at most {readers}")
    per_layer, written = row["kernels_per_layer"], row["written_per_layer_bytes"]
    most = KERNELS_PER_LAYER if case.num_ranks == 1 else KERNELS_PER_LAYER_TOGETHER
    if per_layer and (number := per_layer["other"] + per_layer["attention"]) > most:
        found.append(f"{number:g} kernels per layer: at most {most}")
    limit = WRITTEN_LIMIT * max(case.slots, 2) / 64  # a lone sequence has a dead one beside it
    if written and written > limit:
        found.append(f"a layer writes {written / MB:.1f} MB: at most {limit / MB:.0f}")
    return found


def temp_limit(case: Case) -> int:
    """Of a decode step, in bytes, by its slots. On top, what plain-JAX attention gathers: a block of keys and
    one of values per slot."""
    from pallas_kernels.reference import BLOCK_KV

    limit = TEMP_LIMIT if case.sampler == Sampler.GREEDY else SAMPLING_TEMP_LIMIT
    limit *= max(1, case.slots // 64)
    if case.num_ranks > 1:
        limit += gathered_bytes(case)
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
    written, goal = row["written_per_layer_bytes"], WRITTEN_GOAL * max(case.slots, 2) / 64
    if case.decodes and written and written > goal:
        found.append(f"a layer writes {written / MB:.2f} MB (goal: {goal / MB:.2g})")
    moves = [move["bytes"] for move in row["large_moves"]]
    if moves:
        found.append(f"{len(moves)} gathers or transposes of up to {max(moves) / MB:.0f} MB")
    return found
