"""`jbatch bench compare`: jbatch against PyTorch on one device, with the same weights and requests.

Every arm's tokens are compared with jbatch's before it is timed; then all arms run in turn, several times.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import LADDER_ENGINE
from bench.compare.contenders import (
    ENTRIES,
    GROUPS,
    REFERENCE,
    Contender,
    Driven,
    Entry,
    Outcome,
    Stage,
    choose_entries,
    versions,
)
from bench.compare.table import LEAST_COMPARED, compared_share, print_comparison
from bench.ladder.gains import LEAST_BATCHES
from bench.options import SETTING_HELP, WORKLOAD, Setting
from bench.results import ArmResult, Rates, Results, claimed, describe, write
from bench.workloads.workload import Workload
from jbatch.cli.options import with_options
from jbatch.errors import ConfigError

LEAST_REPEATS = 3
STATIC = ("hf-generate",)  # arms that run batch by batch

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command was asked for, beside a Setting."""

    model: str = "demo"
    dataset_name: str = "mixed_length"
    arms: tuple[str, ...] = ()  # none: all
    output_json: Path | None = None
    record: Path | None = None  # a file for the plans; None: one that does not stay


@dataclasses.dataclass
class Row:
    """An arm, and what it has given so far."""

    entry: Entry
    contender: Contender | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    not_run: str | None = None

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Do something; an error makes this a row "not run: why", and takes nobody along."""
        if self.not_run is not None:
            return
        try:
            do()
        except Exception as error:  # of whatever kind: the other arms' results matter more
            name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            self.not_run = f"{what}: {name}{error}"
            self.outcomes = []
            self.close()

    def close(self) -> None:
        contender, self.contender = self.contender, None
        if contender is not None:
            try:
                contender.close()
            except Exception as error:  # it has failed already, or is done
                self.about["close_error"] = str(error)


def compare(
    asked: Asked, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> Results:
    """Check, measure, print and write; the file is up to date after each arm that is built, and each repeat.

    Raises:
      ConfigError, WorkloadError, TraceError: before any work, for what was asked for wrongly.
      JBatchError, and what LLM raises: where jbatch itself cannot run, as there is nothing to compare with.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes what PyTorch needs
    from bench.ladder.batching import Batching, make_workloads, samplers
    from bench.measure.subject import LLMSubject, find_model

    entries = choose_entries(list(asked.arms))
    if setting.repeats < LEAST_REPEATS:
        raise ConfigError("repeats", setting.repeats, f"must be at least {LEAST_REPEATS}")
    options = {"max_num_seqs": 16, "seed": setting.seed} | samplers(setting) | engine_options
    asked_for = Batching(asked.model, (asked.dataset_name,))
    (workload,) = make_workloads(asked_for, setting, options, workload_options | {"closed": True})
    options = _with_pages(asked.model, workload.longest, options)
    model_dir, _ = find_model(asked.model)
    with claimed(asked.output_json), claimed(asked.record), tempfile.TemporaryDirectory() as scratch:
        subject = LLMSubject(asked.model, workload.longest, options, measure_floor=False)
        stage = Stage(subject, workload, model_dir, asked.record or Path(scratch) / "plans.jsonl")
        rows = [Row(entry) for entry in entries]
        try:
            return _compare(stage, rows, setting.repeats, asked.output_json)
        finally:
            for row in rows:
                row.close()
            stage.close()
            subject.close()


def _compare(stage: Stage, rows: Sequence[Row], repeats: int, path: Path | None) -> Results:
    from bench.measure import manifest

    about = manifest.collect() | stage.subject.about | {"versions": versions(), "arrivals": "all at time 0"}

    def results() -> Results:
        arms = {row.entry.name: result(row, stage) for row in rows}
        seen = about | {"clocks_after": manifest.clocks()}
        return Results("compare", seen, describe(stage.workload), arms, gains=ratios(arms, stage.workload))

    measure(stage, rows, repeats, lambda: _save(path, results))
    return results()


def measure(stage: Stage, rows: Sequence[Row], repeats: int, on_news: Callable[[], None]) -> None:
    """Build and check each arm, and run those that agree in turn. Raises what jbatch's own arm raises.

    on_news: is called when an arm is built, or is not, and after each repeat.
    """
    from bench.compare.cross_check import NEAR_TIE, LogitGap, cross_check

    config, runner = stage.subject.llm.model_config, stage.subject.llm.runner
    gap, tolerance = LogitGap(config, runner.params, stage.workload.longest), NEAR_TIE[config.dtype]
    prompts = [item.prompt_token_ids for item in stage.workload.items]
    reference: list[list[int]] = []

    def prepare(row: Row) -> None:
        begin = time.perf_counter()
        row.contender = row.entry.build(stage)
        row.about["build_s"] = time.perf_counter() - begin
        tokens = row.contender.run().tokens
        row.about |= {"warm_up_s": time.perf_counter() - begin, **row.contender.describe()}
        if row.entry.name == REFERENCE:
            assert isinstance(row.contender, Driven)
            reference[:] = tokens
            stage.record(row.contender.plans)
        row.about["check"] = cross_check(prompts, reference, tokens, gap, tolerance)._asdict()

    def run_again(row: Row) -> None:
        assert row.contender is not None
        outcome = row.contender.run()
        cross_check(prompts, reference, outcome.tokens, gap, tolerance)
        row.outcomes.append(outcome._replace(tokens=[]))

    for row in rows:
        if row.entry.name == REFERENCE:
            prepare(row)  # without it nothing can be compared: its error is the command's
        else:
            row.attempt("not built, or not checked", lambda row=row: prepare(row))
        on_news()
    for repeat in range(repeats):
        for row in rows:
            row.attempt(f"repeat {repeat + 1}", lambda row=row: run_again(row))
        on_news()


def result(row: Row, stage: Stage) -> ArmResult:
    """Of the repeat of median duration."""
    from bench.measure import measures
    from bench.measure.account import step_rows

    entry, max_num_seqs = row.entry, stage.subject.max_num_seqs
    if row.not_run is not None or not row.outcomes:
        return ArmResult(entry.name, entry.definition, not_run=row.not_run or _cut_off(row))
    middle = sorted(row.outcomes, key=lambda one: -one.duration_s)[(len(row.outcomes) - 1) // 2]
    steps, counts, latencies, requests = [], None, None, []
    if middle.run is None:
        rates = _rates(stage, middle.duration_s)
    else:
        steps = step_rows(middle.run, stage.subject.llm.runner.shape, False)
        counts = measures.counts(middle.run, steps, stage.subject.page_size, 0)
        rates, latencies = measures.rates(middle.run, steps), measures.latencies(middle.run)
        requests = measures.request_rows(middle.run)
    num_tokens = stage.workload.num_output_tokens
    return ArmResult(
        label=f"{entry.name}: {row.about['attention']}",
        definition=entry.definition,
        max_num_seqs=max_num_seqs,
        counts=counts,
        rates=rates,
        latencies=latencies,
        repeats=tuple(num_tokens / one.duration_s for one in row.outcomes),
        steps=tuple(steps),
        requests=tuple(requests),
        extra=row.about,
    )


def _cut_off(row: Row) -> str:
    """Why an arm that did not fail has no figures."""
    if "check" not in row.about:
        return "the run was cut off before it was built and checked"
    check = row.about["check"]
    return (
        f"the run was cut off before it was timed; {check['equal']} of {check['requests']} requests had the "
        f"same tokens, {check['near_ties']} parted at a near-tie"
    )


def _rates(stage: Stage, duration_s: float) -> Rates:
    workload = stage.workload
    return Rates(
        duration_s=duration_s,
        idle_s=0.0,
        request_throughput=len(workload.items) / duration_s,
        output_throughput=workload.num_output_tokens / duration_s,
        total_token_throughput=(workload.num_prompt_tokens + workload.num_output_tokens) / duration_s,
        request_goodput=None,
        device_busy_share=None,
        floor_share=None,
    )


def ratios(arms: dict[str, ArmResult], workload: Workload) -> dict[str, Any]:
    """jbatch's output throughput over each other's; a replay's over the other executor's; {"refused": why}
    in the place of one that would mislead."""
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        base = "replay-jbatch" if name.startswith("replay") else REFERENCE
        over = arms.get(base)
        if name != base and over is not None and over.rates is not None and arm.rates is not None:
            reason = _refusal(base, over, workload) or _refusal(name, arm, workload)
            ratio = over.rates.output_throughput / arm.rates.output_throughput
            found[f"{base} / {name}"] = ratio if reason is None else {"refused": reason}
    return found


def _refusal(name: str, arm: ArmResult, workload: Workload) -> str | None:
    """Why an arm is in no ratio; None where it may be."""
    share = compared_share(arm, workload.num_output_tokens)
    if share < LEAST_COMPARED:
        return f"{name} is not trusted: only {share:.0%} of its tokens could be compared"
    most = arm.max_num_seqs or 1
    if name in STATIC and len(workload.items) < LEAST_BATCHES * most:
        return (
            f"{len(workload.items)} requests are fewer than {LEAST_BATCHES} static batches of {most}: "
            "the first and the last batch weigh too much"
        )
    return None


def _with_pages(model: str, longest: int, options: dict[str, Any]) -> dict[str, Any]:
    """A cache that holds every row at its longest, and no more: other engines need memory too."""
    from bench.measure.subject import engine_options
    from jbatch.config import EngineConfig

    if {"num_pages", "kv_cache_memory_bytes"} & options.keys():
        return options
    _, found = engine_options(model, longest, options)
    config = EngineConfig(**found)
    per_sequence = -(-(config.max_model_len or longest) // config.page_size)
    return options | {"num_pages": 1 + config.max_num_seqs * per_sequence}


def _save(path: Path | None, results: Callable[[], Results]) -> None:
    if path is not None:
        write(path, results())


# The command line.


HELP = {name: SETTING_HELP[name] for name in ("num_prompts", "seed", "repeats")}
ARM_NAMES = ", ".join((*ENTRIES, *GROUPS))


def run(args: list[str]) -> int:
    """The command, with its own flags. Raises what `compare` raises, and click's usage errors."""
    return app(args, prog_name="jbatch bench compare", standalone_mode=False) or 0


@app.command()
@with_options(LADDER_ENGINE, WORKLOAD, (Setting, HELP))
def command(
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    model: Annotated[str, typer.Option(metavar="NAME|DIR", help="As in `jbatch bench batching`.")] = "demo",
    dataset_name: Annotated[
        str, typer.Option(metavar="NAME", help="As in `jbatch bench batching`.")
    ] = "mixed_length",
    arms: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"May be repeated: {ARM_NAMES}. [default: all]")
    ] = None,
    output_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write results there; must not exist.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the plans that are replayed; must not exist.")
    ] = None,
) -> None:
    """Run the same requests through jbatch and through PyTorch's engines, on one device and the same weights.

    Greedy tokens are compared before any time is shown; an arm that cannot run, or that gives other tokens,
    is a line that says why.
    """
    asked = Asked(model, dataset_name, tuple(arms or ()), output_json, record)
    print_comparison(compare(asked, Setting(**setting_options), engine_options, workload_options))
