"""A ladder's results for people: figures, then gains, then what each arm is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.ladder.arms import STATIC
from bench.ladder.gains import (
    BASELINES,
    CLAIMED_OVER_STATIC,
    CLAIMS,
    LEAST_BATCHES,
    TRUSTED_RANGE,
    worst_range,
)
from bench.ladder.ladder import best_sizes, ran
from bench.measure.measures import PARTS
from bench.results import ArmResult, Results, SweepPoint

WIDTH = 110
OVER_UNBATCHED = ("static", "static-padded", "static-sorted", "continuous")


def console() -> Console:
    """A console of the tables' width, for plain text."""
    return Console(width=WIDTH, highlight=False, markup=False, soft_wrap=True)


def print_ladder(out: Console, results: Results) -> None:
    """Print all tables of one workload."""
    manifest = results.manifest
    out.print(f"\n{describe_workload(results.workload)}")
    out.print(f"{manifest['model']} on {manifest['device']}, at most {manifest['max_num_seqs']} at once\n")
    out.print(_methods(results.arms))
    out.print(_per_second(results.arms))
    out.print(_counted(results.arms))
    if found := _found(results.arms):
        out.print(found)
    _print_memory(out, manifest, results.arms)
    out.print(_waited(results.arms))
    out.print(_parts(results.arms))
    for name, arm in results.arms.items():
        if arm.not_run is not None:
            out.print(f"{name}: not run: {arm.not_run}")
        elif arm.extra.get("failed"):
            out.print(f"{name}: stopped early: {arm.extra['failed']}")
    if results.sweep:
        print_sweep(out, results.sweep)


def print_rates(out: Console, arms: Mapping[str, ArmResult]) -> None:
    """Print what arms did per second, what they counted, and how long requests took."""
    for table in (_per_second(arms), _counted(arms), _waited(arms)):
        out.print(table)
    for name, arm in arms.items():
        if arm.not_run is not None:
            out.print(f"{name}: not run: {arm.not_run}")


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


def _methods(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by tokens/s, latency and utilisation."""
    headings = "method", "at once", "tokens/s", "spread", "latency p50", "p99", "slot use", "busy", "of floor"
    rows = []
    for name, arm in ran(arms):
        assert arm.rates is not None and arm.counts is not None
        e2el = arm.latencies.e2el if arm.latencies is not None else None
        rows.append(
            (
                name,
                f"{arm.max_num_seqs}",
                f"{arm.rates.output_throughput:.0f}",
                _share(arm.spread),
                *(("", "") if e2el is None else (_ms(e2el.p50), _ms(e2el.p99))),
                _share(arm.counts.slot_use),
                _share(arm.rates.device_busy_share),
                _share(arm.rates.floor_share),
            )
        )
    return _table(headings, rows)


def _per_second(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by their rates."""
    headings = "per second", "output tokens", "total tokens", "requests", "within limits", "seconds", "idle"
    rows = [
        (
            name,
            f"{r.output_throughput:.1f}",
            f"{r.total_token_throughput:.1f}",
            f"{r.request_throughput:.3f}",
            "" if r.request_goodput is None else f"{r.request_goodput:.3f}",
            f"{r.duration_s:.2f}",
            f"{r.idle_s:.2f}",
        )
        for name, arm in ran(arms)
        if (r := arm.rates) is not None
    ]
    return _table(headings, rows)


def _counted(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by what does not depend on the machine."""
    headings = "counted", "steps", "decoding", "with prompts", "slot-steps", "padding", "preempted"
    rows = [
        (
            name,
            f"{c.num_steps}",
            f"{c.decode_steps}",
            f"{c.prefill_steps}",
            f"{c.slot_steps}",
            f"{c.padded_share:.0%}",
            f"{c.num_preempted}",
            f"{c.compilations_after_warmup}",
        )
        for name, arm in ran(arms)
        if (c := arm.counts) is not None
    ]
    return _table((*headings, "compiled"), rows)


def _found(arms: Mapping[str, ArmResult]) -> str:
    """How much of the prompts came from a prefix cache; empty where nothing did."""
    shares = [
        f"{name} {arm.counts.prefix_hit_rate:.0%}"
        for name, arm in ran(arms)
        if arm.counts is not None and arm.counts.prefix_hit_rate
    ]
    return f"of prompts' tokens, found in the cache: {', '.join(shares)}" if shares else ""


def _print_memory(out: Console, manifest: Mapping[str, Any], arms: Mapping[str, ArmResult]) -> None:
    """Print the arms by the cache that they use, beside what they would hold in one piece per sequence."""
    headings = "pages, over the steps", "in use: mean", "peak", "contiguous: mean", "peak", "in use of it"
    rows = [
        (
            name,
            f"{c.mean_pages_used:.1f}",
            f"{c.peak_pages_used}",
            f"{c.mean_pages_contiguous:.1f}",
            f"{c.peak_pages_contiguous}",
            f"{c.kv_of_contiguous:.0%}",
            f"{c.kv_use:.0%}",
        )
        for name, arm in ran(arms)
        if (c := arm.counts) is not None
    ]
    out.print(_table((*headings, "filled"), rows))
    if {"max_model_len", "page_size", "kv_bytes_per_token"} <= manifest.keys():
        page_size, max_model_len = manifest["page_size"], manifest["max_model_len"]
        kib = page_size * manifest["kv_bytes_per_token"] / 1024
        out.print(
            f"A page is {page_size} tokens, {kib:,.0f} KiB; filled: the share that holds tokens. Contiguous: "
            f"a cache without pages\nreserves max_model_len={max_model_len}, "
            f"{-(-max_model_len // page_size)} pages, for each running sequence.\n"
        )


def _waited(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by their latencies."""
    parts = ("mean", "p50", "p90", "p99")
    rows = []
    for name, arm in ran(arms):
        latencies = arm.latencies.to_json() if arm.latencies is not None else {}
        for latency in ("ttft", "tpot", "itl", "e2el"):
            values = [latencies.get(f"{part}_{latency}_ms") for part in parts]
            rows.append((name, latency.upper(), *("" if v is None else f"{v:.1f}" for v in values)))
            name = ""
    return _table(("milliseconds", "", *parts), rows)


def _parts(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by where their latency goes."""
    rows = []
    for name, arm in ran(arms):
        latencies = arm.latencies
        if latencies is None or latencies.e2el is None:
            continue
        for part in PARTS:
            spread = getattr(latencies, part)
            if spread is not None:
                values = (f"{value:.1f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99))
                rows.append((name, part, *values, _share(spread.mean / latencies.e2el.mean)))
                name = ""
    return _table(("parts of E2EL, ms", "", "mean", "p50", "p90", "p99", "of the mean"), rows)


SWEEP = (
    ("output tokens/s", "output_throughput", "{:.0f}"),
    ("E2EL p50, ms", "p50_e2el_ms", "{:.0f}"),
    ("E2EL p99, ms", "p99_e2el_ms", "{:.0f}"),
    ("slot use", "slot_use", "{:.0%}"),
    ("KV in use of contiguous", "kv_of_contiguous", "{:.0%}"),
)


def print_sweep(out: Console, curves: Mapping[str, Sequence[SweepPoint]]) -> None:
    """Print what each batch size gave; the best of each arm is the size that the other tables show."""
    sizes = sorted({point.max_num_seqs for curve in curves.values() for point in curve})
    best = best_sizes(curves)
    out.print("sweep: each batch size once; * is the one of most tokens/s, at which the arm is shown above")
    for title, field, form in SWEEP:
        rows = []
        for name, curve in curves.items():
            known = {point.max_num_seqs: getattr(point, field) for point in curve}
            cells = ("" if known.get(size) is None else form.format(known[size]) for size in sizes)
            stars = (" *" if size == best.get(name) else "" for size in sizes)
            rows.append((name, *map("".join, zip(cells, stars, strict=True))))
        out.print(_table((title, *map(str, sizes)), rows))


def print_gains(out: Console, every: Sequence[Results]) -> None:
    """Print scenario x gain over unbatched, and continuous over each static baseline, beside what was
    claimed."""
    named = {r.workload["name"]: r.gains for r in every if "refused" not in r.gains}
    if named:
        out.print("gain over unbatched, by output tokens/s (in brackets: claimed)")
        out.print(_table(("scenario", *OVER_UNBATCHED), [_over_unbatched(*item) for item in named.items()]))
        out.print("continuous over each static baseline (in brackets: claimed, for a static left undefined)")
        headings = ("tokens/s, scenario", *STATIC)
        out.print(_table(headings, [_over_static(*item) for item in named.items()]))
        for field in ("num_steps", "slot_steps"):
            rows = [
                (name, *(_beside(gains.get(f"{field} {base} / continuous"), None) for base in STATIC))
                for name, gains in named.items()
            ]
            out.print(_table((f"{field.replace('num_', '').replace('_', '-')}, counted", *STATIC), rows))
        _print_range(out, [worst_range(r.arms) for r in every if "refused" not in r.gains])
    for results in every:
        if "refused" in results.gains:
            out.print(f"{results.workload['name']}: no gain is named: {results.gains['refused']}")
    print_definitions(out, {name: arm for results in every for name, arm in results.arms.items()})


def _print_range(out: Console, ranges: Sequence[float | None]) -> None:
    """Say whether the timed gains mean something."""
    known = [width for width in ranges if width is not None]
    if not known:
        out.print("Timed gains are of one repeat: no spread is known.")
        return
    worst, doubt = max(known), ""
    if worst > TRUSTED_RANGE:
        doubt = ": too much for a timed gain to be trusted; what was counted stands"
    out.print(
        "Timed gains are medians over the repeats of the ratio within a repeat; between repeats they "
        f"differed by up to {worst:.0%}{doubt}."
    )


def _over_unbatched(scenario: str, gains: Mapping[str, Any]) -> tuple[str, ...]:
    claim = CLAIMS.get(scenario)
    claimed = {"static": claim.static, "continuous": claim.continuous} if claim else {}
    cells = (_beside(gains.get(f"{name} / unbatched"), claimed.get(name)) for name in OVER_UNBATCHED)
    return (scenario, *cells)


def _over_static(scenario: str, gains: Mapping[str, Any]) -> tuple[str, ...]:
    cells = (
        _beside(gains.get(f"continuous / {base}"), CLAIMED_OVER_STATIC if base in BASELINES else None)
        for base in STATIC
    )
    return (scenario, *cells)


def print_definitions(out: Console, arms: Mapping[str, ArmResult]) -> None:
    """Print what each arm is, and what the words of the tables mean."""
    out.print("what each arm is; all run on the same weights, kernels and compiled programs:")
    for name, arm in arms.items():
        out.print(f"  {name}: {arm.definition}")
    out.print(
        f"A slot-step is one row of one decode step. A gain needs {LEAST_BATCHES} batches of requests. "
        "Throughputs are per second in which something was unfinished. E2EL = fill (waiting for a full "
        "batch) + queue (until the first chunk is planned) + prefill (until the first token) + decode."
    )


def _beside(value: float | None, claimed: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ({claimed})" if claimed is not None else "")


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _table(headings: Iterable[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
