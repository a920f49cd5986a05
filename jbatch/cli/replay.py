"""`jbatch replay`: what a trace of the scheduler decided, decided again without a model."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from jbatch.cli.help import choices
from jbatch.cli.tables import Page, Table
from jbatch.config import AdmissionName, EngineConfig, check_choice
from jbatch.engine.trace import AT_ITS_END
from jbatch.errors import ConfigError, is_failure
from jbatch.host.policies import POLICIES
from jbatch.sim.trace_chrome import to_chrome
from jbatch.sim.trace_file import Trace, TraceError, read_trace
from jbatch.sim.trace_replay import repeat
from jbatch.sim.trace_rerun import Outcome, recorded, rerun

ADMISSIONS = get_args(AdmissionName)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(short_help="A trace's decisions made again, or its requests under another policy.")
def replay(
    trace: Annotated[Path, typer.Argument(help="What `jbatch generate --trace` wrote.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar=choices(POLICIES), help="Compare with this one. May be repeated."),
    ] = None,
    admission: Annotated[
        list[str] | None,
        typer.Option(metavar=choices(ADMISSIONS), help="Likewise. May be repeated. [default: the trace's]"),
    ] = None,
    chrome: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the trace for Perfetto there, to a new file; nothing is repeated."
        ),
    ] = None,
) -> None:
    """Tell a new scheduler all that the trace's was told, in the same order, and compare every plan with the
    trace's, byte for byte. With --policy or --admission, let the same requests come under another one and
    count steps.
    """
    for field, names, known in (("policy", policy, tuple(POLICIES)), ("admission", admission, ADMISSIONS)):
        for name in names or ():
            check_choice(field, name, known)
    if chrome is not None and (policy or admission):
        raise ConfigError(
            "chrome", str(chrome), "writes the trace as it is: leave --policy and --admission out"
        )
    if chrome is not None and os.path.lexists(chrome):
        raise ConfigError("chrome", str(chrome), "is there already: name another, or remove it")
    read = _read(trace)
    if chrome is not None:
        chrome.write_text(json.dumps(to_chrome(read)), encoding="utf-8")
        typer.echo(f"wrote {chrome}: open it in Perfetto")
    elif policy or admission:
        _compare(read, policy or [None], admission or [None])
    else:
        _repeat(read)


def _read(path: Path) -> Trace:
    try:
        return read_trace(path)
    except OSError as error:
        if is_failure(error):
            raise
        raise ConfigError("trace", str(path), f"cannot be read: {error.strerror}") from error


def _repeat(trace: Trace) -> None:
    done = repeat(trace)
    if done.differs is not None:
        typer.echo(f"trace: {done.differs.raw}now:   {done.now}", nl=False)
        place = f"{trace.path}, line {done.differs.line_no}"
        raise TraceError(
            f"{place}: plan {done.plans} differs: the file was changed, or another version of jbatch wrote it"
        )
    cut_off = "" if trace.closed == AT_ITS_END else f". The trace ends early: {trace.closed}"
    typer.echo(f"{done.plans} plans, all equal to the trace's{cut_off}")


def _compare(trace: Trace, policies: Sequence[str | None], admissions: Sequence[str | None]) -> None:
    own = trace.config["policy"] or "its own"
    kept = trace.config.get("reserve", EngineConfig.admission)
    outcomes = [(f"{own}*", f"{kept}*", recorded(trace))]
    for policy, admission in itertools.product(dict.fromkeys(policies), dict.fromkeys(admissions)):
        outcomes.append((policy or own, admission or kept, rerun(trace, policy, admission)))
    page = Page()
    page.show(outcomes_table(outcomes))
    page.print("* as recorded. The others: the same requests at the same steps, with as many tokens each")


def outcomes_table(outcomes: Sequence[tuple[str, str, Outcome]]) -> Table:
    """Policies and admissions by the steps that the same requests take."""
    rows = [
        (policy, admission, f"{o.steps}", f"{o.makespan}", f"{o.mean_latency:.1f}", f"{o.preemptions}")
        for policy, admission, o in outcomes
    ]
    headings = ("policy", "admission", "steps", "makespan, steps", "mean E2EL, steps", "preempted")
    return Table(headings, rows, num_names=2)
