"""A results file of a comparison that can be worked out with a pencil: 6 requests on 2 slots."""

from bench.report.arm import read_arms
from bench.results import RequestRow, StepRow, SweepPoint

OUTPUT_LENS = (4, 1, 2, 3, 1, 2)
SECONDS = 0.01  # of a step


def content(**changes):
    """Two arms that ran and one that did not."""
    arms = {
        "static-padded": arm("static-padded", refill=False),
        "continuous": arm("continuous", refill=True),
        "torch-generate": {"label": "generate", "definition": "of transformers", "not_run": "no torch here"},
    }
    manifest = {"device": "cpu", "compute_capability": None, "model": "demo", "num_pages": 12, "jax": "0.10"}
    scales = {"length_scale": 0.25, "time_scale": 1.0}
    workload = {"name": "mixed_length", "hash": "c0ffee", "num_prompts": 6, "seed": 0, "scales": scales}
    workload |= {"num_prompt_tokens": 18, "num_output_tokens": sum(OUTPUT_LENS)}
    found = {
        "schema": 1,
        "kind": "batching",
        "manifest": manifest,
        "workload": workload,
        "step_fields": list(StepRow._fields),
        "request_fields": list(RequestRow._fields),
        "arms": arms,
        "sweep": {"continuous": [[1, 50.0], [2, 90.0]]},
        "sweep_fields": list(SweepPoint._fields),
        "sweep_points": {"continuous": [_sweep_point(1, 50.0), _sweep_point(2, 90.0)]},
        "gains": {"continuous / static-padded": 1.5},
    }
    return found | changes


def arms(**changes):
    """The arms that ran, as pictures take them."""
    return read_arms(content(**changes))[0]


def bars_only(**changes):
    """Results without steps and requests: one picture, which is quick."""
    changed = content(sweep={}, sweep_points={}, **changes)
    for name in ("static-padded", "continuous"):
        changed["arms"][name] |= {"steps": [], "requests": [], "mean_decode_ms": None}
    return changed


def arm(name, refill):
    """One prefill step for each admission, then decode steps; a token of each sequence in each."""
    waiting, running, steps, done = list(range(6)), {}, [], {}
    first: dict[int, float] = {}
    while waiting or running:
        left = {row: request for row, (request, tokens) in running.items() if tokens}
        free = [row for row in range(2) if row not in (left if refill else running)]
        if not refill and not left:
            running, free = {}, [0, 1]
        if waiting and free and (refill or len(free) == 2):
            admitted = {row: waiting.pop(0) for row in free[: len(waiting)]}
            for row, request in admitted.items():
                running[row] = (request, OUTPUT_LENS[request] - 1)
                first[request] = done[request] = (len(steps) + 1) * SECONDS
            steps.append(_step("prefill", admitted, {}, len(steps)))
            continue
        if not left:
            break
        held = {} if refill else {row: request for row, (request, tokens) in running.items() if not tokens}
        steps.append(_step("decode", left, held, len(steps)))
        for row in left:
            request, tokens = running[row]
            running[row] = (request, tokens - 1)
            done[request] = len(steps) * SECONDS
    requests = [[0.0, first[i], done[i], 3, OUTPUT_LENS[i], 0.0, first[i] - SECONDS] for i in range(6)]
    rate = sum(OUTPUT_LENS) / (len(steps) * SECONDS)
    useful = sum(step[StepRow._fields.index("useful")] for step in steps if step[0] == "decode")
    slot_steps = sum(step[1] for step in steps if step[0] == "decode")
    return {
        "label": name,
        "definition": f"what {name} is",
        "max_num_seqs": 2,
        "output_throughput": rate,
        "slot_use": useful / slot_steps,
        "slot_steps": slot_steps,
        "repeats": [rate, 0.9 * rate, 1.1 * rate],
        "spread": 0.2,
        "p50_ttft_ms": 10.0,
        **{f"{name}_fill_ms": 0.0 for name in ("mean", "p50", "p99")},
        **{
            f"{name}_{part}_ms": 10.5
            for name in ("mean", "p50", "p99")
            for part in ("queue", "prefill", "decode")
        },
        "steps": steps,
        "requests": requests,
    }


def _sweep_point(size, rate):
    return list(SweepPoint(size, rate, p50_e2el_ms=10 / rate, p99_e2el_ms=30 / rate, slot_use=0.5))


def _step(kind, live, held, index):  # each of the live gets a token
    rows = [[row, request, 0] for row, request in live.items()]
    rows += [[row, request, 1] for row, request in held.items()]
    computed = 8 if kind == "prefill" else 2
    useful = 3 * len(live) if kind == "prefill" else len(live)
    wasted = 0 if kind == "prefill" else len(held)
    padded = computed - useful - wasted
    times = 0.8 * SECONDS, (index + 1) * SECONDS, 0.002
    account = computed, useful, padded, wasted, 0, 9
    return list(StepRow(kind, 2, len(rows), 2, *times, *account, rows, 8, len(live)))
