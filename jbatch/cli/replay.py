"""`jbatch replay`: what a trace of the scheduler decided, decided again without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jbatch.errors import ConfigError
from jbatch.host.policies import POLICIES
from jbatch.sim.trace_chrome import to_chrome
from jbatch.sim.trace_file import Trace, TraceError, read_trace
from jbatch.sim.trace_replay import repeat
from jbatch.sim.trace_rerun import Outcome, recorded, rerun

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(short_help="A trace's decisions made again, or its requests under another policy.")
def replay(
    trace: Annotated[Path, typer.Argument(help="What `jbatch generate --trace` wrote.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Compare with this one; may be repeated: {', '.join(POLICIES)}."),
    ] = None,
    chrome: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the trace for Perfetto there; nothing is repeated."),
    ] = None,
) -> None:
    """Tell a new scheduler all that the trace's was told, in the same order, and compare every plan with the
    trace's, byte for byte. With --policy, let the same requests come under another policy and count steps.
    """
    for name in policy or ():
        if name not in POLICIES:
            raise ConfigError("policy", name, f"must be one of {', '.join(POLICIES)}")
    read = read_trace(trace)
    if chrome is not None:
        chrome.write_text(json.dumps(to_chrome(read)), encoding="utf-8")
        typer.echo(f"wrote {chrome}: open it in Perfetto")
    elif policy:
        _compare(read, policy)
    else:
        _repeat(read)


def _repeat(trace: Trace) -> None:
    done = repeat(trace)
    if done.differs is not None:
        typer.echo(f"trace: {done.differs.raw}now:   {done.now}", nl=False)
        place = f"{trace.path}, line {done.differs.line_no}"
        raise TraceError(
            f"{place}: plan {done.plans} differs: the file was changed, or another version of jbatch wrote it"
        )
    typer.echo(f"{done.plans} plans, all equal to the trace's. It ends: {trace.closed}")


def _compare(trace: Trace, policies: list[str]) -> None:
    typer.echo(f"{'policy':<12}{'steps':>8}{'makespan':>10}{'preempted':>11}{'mean latency':>14}   in steps")
    own = trace.config["policy"] or "its own"
    _print(f"{own}*", recorded(trace))
    for name in policies:
        _print(name, rerun(trace, name))
    typer.echo(
        "* as recorded. The others: the same requests, as many steps after the first, of equal lengths"
    )


def _print(name: str, outcome: Outcome) -> None:
    steps, makespan, preempted, latency = outcome
    typer.echo(f"{name:<12}{steps:>8}{makespan:>10}{preempted:>11}{latency:>14.1f}")
