"""`jbatch predictor train`: a predictor of output lengths from a job's files or a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.claims import claimed
from bench.predict.judge import COVERED, Score, floor_mae, judge
from bench.predict.samples import Sample, from_trace, read_results
from bench.predict.train import train as train_predictor
from bench.workloads.trace import MAX_TOKENS
from jbatch.cli.tables import Page, Table
from jbatch.errors import ConfigError
from jbatch.host.lengths.prediction import Predictor
from jbatch.host.lengths.predictors import PromptLength, RunningMean

HELD_OUT = 1 / 3  # the last of them

app = typer.Typer(help="Predict how long answers will be.", add_completion=False, rich_markup_mode=None)


@app.callback()
def _commands() -> None:
    """One command so far; it is named nevertheless."""


@app.command(short_help="Train on a job's results, or on a trace.")
def train(
    results: Annotated[
        Path | None, typer.Argument(metavar="OUT.jsonl", help="What a job wrote, in its order.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input-file", "-i", metavar="FILE", help="The job's input: the prompts' texts."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead of results: a CSV of TIMESTAMP, ContextTokens, GeneratedTokens."
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests of the trace. [default: 1000]")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MAX_TOKENS, metavar="N", help="Of requests that name none.")
    ] = 2048,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; must not exist.")
    ] = None,
) -> None:
    """Train on the first two thirds, judge on the last, beside predictors that need no training; then train
    on all and write that.
    """
    with claimed(output):
        samples = _samples(results, input_file, trace, num_prompts, max_tokens)
        about = {"source": str((results or trace or Path()).name)}
        cut = len(samples) - int(HELD_OUT * len(samples))
        seen, judged = samples[:cut], samples[cut:]
        arms: dict[str, Predictor] = {
            "running mean": RunningMean(),
            "prompt length": PromptLength(),
            "learned": train_predictor(seen, about),
        }
        scores = {name: judge(predictor, seen, judged) for name, predictor in arms.items()}
        if output is not None:
            train_predictor(samples, about).write(output)
    _print(len(seen), judged, scores)
    if output is not None:
        typer.echo(f"wrote {output}: LLM(..., predictor={str(output)!r}), or --predictor {output}")


def _samples(
    results: Path | None, requests: Path | None, trace: Path | None, num_prompts: int | None, max_tokens: int
) -> list[Sample]:
    if (results is None) == (trace is None):
        given = None if results is None else str(results)
        raise ConfigError("results", given, "give either OUT.jsonl or --trace FILE")
    if trace is not None:
        if requests is not None:
            raise ConfigError("input_file", str(requests), "a trace has no texts: leave one of them out")
        return from_trace(trace, num_prompts or 1000, max_tokens)
    if num_prompts is not None:
        raise ConfigError("num_prompts", num_prompts, "is for --trace: all results of a job are read")
    assert results is not None
    return read_results(results, requests, max_tokens)


def _print(num_seen: int, judged: Sequence[Sample], scores: Mapping[str, Score]) -> None:
    out = Page()
    out.print(f"trained on {num_seen} answers, judged on the {len(judged)} after them\n")
    out.show(scores_table(scores))
    floor = floor_mae(judged)
    if floor is not None:
        out.print(f"{floor:.1f} tokens remain to one who knows the median of each prompt's answers")
    best = min(scores, key=lambda name: scores[name].mae)
    out.print(f"best by mean absolute error: {best}")


def scores_table(scores: Mapping[str, Score]) -> Table:
    """The predictors by how far off they were."""
    covering = (f"answers below p{100 * level:.0f}" for level in COVERED)
    rows = []
    for name, score in scores.items():
        tau = "" if score.tau is None else f"{score.tau:.3f}"
        covered = (f"{score.coverage[level]:.0%}" for level in COVERED)
        rows.append((name, f"{score.mae:.1f}", tau, *covered))
    return Table(("arm", "mean absolute error, tokens", "Kendall's tau-b", *covering), rows)
