"""A ladder's results for people: what was counted in a sentence, a small table, and the rest on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.ladder.arms import STATIC
from bench.ladder.ladder import best_sizes, ran
from bench.measure.measures import PARTS
from bench.results import ArmResult, Counts, Rates, Results, SweepPoint
from jbatch.cli.tables import Page, Table, number

PERCENTILES = ("mean", "p50", "p90", "p99")


def print_ladder(out: Page, results: Results, details: bool = False) -> None:
    """Print what came of one workload; all that is known of it with `details`."""
    manifest, arms = results.manifest, results.arms
    if sentence := opening(results):
        out.print(f"\n{sentence}")
    out.print(f"\n{describe_workload(results.workload)}")
    out.print(f"{manifest['model']} on {manifest['device']}, at most {manifest['max_num_seqs']} at once\n")
    out.show(summary_table(arms))
    print_not_run(out, arms)
    if results.sweep:
        print_sweep(out, results.sweep)
    if not details:
        return
    out.show(rates_table(arms))
    _print_counts(out, arms)
    out.show(pages_table(arms))
    _print_page_size(out, manifest)
    out.show(latency_table(arms))
    out.show(parts_table(arms))


def opening(results: Results) -> str:
    """What continuous batching took beside static batches, in steps; empty where it did not run. How many
    times as many is said only where gains may be named."""
    done = dict(ran(results.arms))
    ours = done.pop("continuous", None)
    if ours is None or ours.counts is None:
        return ""
    slots = ours.max_num_seqs
    sentence = (
        f"Continuous batching answered {results.workload['num_prompts']} requests in "
        f"{ours.counts.decode_steps} decode steps of {slots} slots"
    )
    name = next((name for name in STATIC if name in done), None)
    if name is None or (counts := done[name].counts) is None:
        return f"{sentence}."
    of = f"of the same {slots} slots" if done[name].max_num_seqs == slots else f"of {done[name].max_num_seqs}"
    ratio = counts.decode_steps / max(1, ours.counts.decode_steps)
    times = "" if "refused" in results.gains else f" ({ratio:.2f} times as many)"
    return f"{sentence}; {name} batches {of} needed {counts.decode_steps}{times}."


def print_rates(out: Page, arms: Mapping[str, ArmResult]) -> None:
    """Print what arms did per second, what they counted, and how long requests took."""
    out.show(summary_table(arms))
    out.show(rates_table(arms))
    _print_counts(out, arms)
    out.show(latency_table(arms))


def print_not_run(out: Page, arms: Mapping[str, ArmResult]) -> None:
    """Say which arms did not run, or not to their end, and why."""
    for name, arm in arms.items():
        if arm.not_run is not None:
            out.print(f"{name}: not run: {arm.not_run}")
        elif arm.extra.get("failed"):
            out.print(f"{name}: stopped early: {arm.extra['failed']}")


def describe_workload(workload: Mapping[str, Any]) -> str:
    """A workload in one line, its scales included."""
    scales = ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in workload["scales"].items()
    )
    return (
        f"{workload['name']}: {workload['num_prompts']} requests, {workload['num_prompt_tokens']} prompt and "
        f"{workload['num_output_tokens']} output tokens; {scales}; seed {workload['seed']}, "
        f"hash {workload['hash']}"
    )


def summary_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by what matters most; where there are limits, by goodput instead of the median latency."""
    limited = any(rates.request_goodput is not None for _, _, rates in _measured(arms))
    rows = []
    for name, counts, rates in _measured(arms):
        latencies = arms[name].latencies
        e2el = latencies.e2el if latencies is not None else None
        p50, p99 = (None, None) if e2el is None else (e2el.p50, e2el.p99)
        row = name, f"{counts.decode_steps}", _share(counts.slot_use), number(rates.output_throughput)
        latency = (
            _number(rates.request_goodput, "{:.3f}") if limited else _number(p50, "{:.0f}"),
            _number(p99, "{:.0f}"),
        )
        rows.append((*row, _share(arms[name].spread), *latency))
    middle_heading = "goodput, requests/s" if limited else "E2EL p50, ms"
    headings = ("arm", "decode steps", "slot use", "tokens/s", "spread", middle_heading, "E2EL p99, ms")
    return Table(headings, rows)


def rates_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by their rates."""
    headings = ("arm", "total tokens/s", "requests/s", "time, s", "idle, s", "device busy", "of floor")
    rows = [
        (
            name,
            number(rates.total_token_throughput),
            f"{rates.request_throughput:.3f}",
            number(rates.duration_s),
            number(rates.idle_s),
            _share(rates.device_busy_share),
            _share(rates.floor_share),
        )
        for name, _, rates in _measured(arms)
    ]
    return Table(headings, rows)


def counts_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by what does not depend on the machine."""
    headings = ("arm", "steps", "prefill steps", "slot-steps", "padding", "preempted")
    rows = [
        (
            name,
            f"{counts.num_steps}",
            f"{counts.prefill_steps}",
            f"{counts.slot_steps}",
            f"{counts.padded_share:.0%}",
            f"{counts.num_preempted}",
        )
        for name, counts, _ in _measured(arms)
    ]
    return Table(headings, rows)


def _print_counts(out: Page, arms: Mapping[str, ArmResult]) -> None:
    """Print what was counted; what is mostly nothing is said only where it is something."""
    out.show(counts_table(arms))
    measured = _measured(arms)
    _print_some(out, "tokens recomputed", {name: c.recomputed for name, c, _ in measured})
    _print_some(out, "prompt tokens cached", {name: c.prefix_hit_rate for name, c, _ in measured}, "{:.0%}")
    compiled = {name: c.compilations_after_warmup for name, c, _ in measured}
    _print_some(out, "programs compiled after the warm-up", compiled)


def _print_some(out: Page, text: str, values: Mapping[str, float], form: str = "{}") -> None:
    said = ", ".join(f"{name} {form.format(value)}" for name, value in values.items() if value)
    if said:
        out.print(f"{text}: {said}\n")


def pages_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by the cache that they use, beside what they would hold in one piece per sequence."""
    pages = ("mean pages used", "peak pages used", "mean pages reserved", "peak pages reserved")
    rows = [
        (
            name,
            number(counts.mean_pages_used),
            f"{counts.peak_pages_used}",
            number(counts.mean_pages_contiguous),
            f"{counts.peak_pages_contiguous}",
            f"{counts.kv_of_contiguous:.0%}",
            f"{counts.kv_use:.0%}",
        )
        for name, counts, _ in _measured(arms)
    ]
    return Table(("arm", *pages, "used of reserved", "filled"), rows)


def _print_page_size(out: Page, manifest: Mapping[str, Any]) -> None:
    """Print what the words of the table of pages mean."""
    if {"max_model_len", "page_size", "kv_bytes_per_token"} <= manifest.keys():
        page_size, max_model_len = manifest["page_size"], manifest["max_model_len"]
        kib = page_size * manifest["kv_bytes_per_token"] / 1024
        out.print(
            f"A page is {page_size} tokens, {kib:,.0f} KiB; filled: the share that holds tokens. Reserved: a "
            f"cache without pages reserves max_model_len={max_model_len}, "
            f"{-(-max_model_len // page_size)} pages, for each running sequence.\n"
        )


def latency_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by their latencies."""
    rows = []
    for name, arm in ran(arms):
        latencies = arm.latencies.to_json() if arm.latencies is not None else {}
        for latency in ("ttft", "tpot", "itl", "e2el"):
            values = (_number(latencies.get(f"{part}_{latency}_ms"), "{:.1f}") for part in PERCENTILES)
            rows.append((name, latency.upper(), *values))
            name = ""
    return Table(("arm", "latency", *(f"{part}, ms" for part in PERCENTILES)), rows, num_names=2)


def parts_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by where their latency goes."""
    rows = []
    for name, arm in ran(arms):
        latencies = arm.latencies
        if latencies is None or latencies.e2el is None:
            continue
        for part in PARTS:
            spread = getattr(latencies, part)
            if spread is not None:
                values = (f"{getattr(spread, each):.1f}" for each in PERCENTILES)
                rows.append((name, part, *values, _share(spread.mean / latencies.e2el.mean)))
                name = ""
    headings = ("arm", "part", *(f"{part}, ms" for part in PERCENTILES), "of mean E2EL")
    return Table(headings, rows, num_names=2)


SWEEP = (
    ("output tokens/s", "output_throughput", "{:.0f}"),
    ("E2EL p50, ms", "p50_e2el_ms", "{:.0f}"),
    ("E2EL p99, ms", "p99_e2el_ms", "{:.0f}"),
    ("slot use", "slot_use", "{:.0%}"),
    ("pages used of reserved", "kv_of_contiguous", "{:.0%}"),
)


def print_sweep(out: Page, curves: Mapping[str, Sequence[SweepPoint]]) -> None:
    """Print what each batch size gave; the best of each arm is the size that the other tables show."""
    out.print("sweep: each batch size once; * is the one of most tokens/s, at which the arm is shown above")
    for title, field, form in SWEEP:
        out.print(f"\n{title}, by sequences at once")
        out.show(sweep_table(curves, field, form))


def sweep_table(curves: Mapping[str, Sequence[SweepPoint]], field: str, form: str) -> Table:
    """The arms by one figure at each batch size."""
    sizes = sorted({point.max_num_seqs for curve in curves.values() for point in curve})
    best = best_sizes(curves)
    rows = []
    for name, curve in curves.items():
        known = {point.max_num_seqs: getattr(point, field) for point in curve}
        stars = (" *" if size == best.get(name) else "" for size in sizes)
        cells = (_number(known.get(size), form) + star for size, star in zip(sizes, stars, strict=True))
        rows.append((name, *cells))
    return Table(("arm", *map(str, sizes)), rows)


def _measured(arms: Mapping[str, ArmResult]) -> list[tuple[str, Counts, Rates]]:
    """The arms that ran, with what they counted and their rates."""
    return [
        (name, arm.counts, arm.rates)
        for name, arm in ran(arms)
        if arm.counts is not None and arm.rates is not None
    ]


def _share(value: float | None) -> str:
    return _number(value, "{:.0%}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
