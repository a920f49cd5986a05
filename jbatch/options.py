"""Command-line flags from the fields of a dataclass, so that each option is written down once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from jbatch.config import EngineConfig
from jbatch.request import SamplingParams

ENGINE_HELP = {
    "dtype": "Of weights, activations and cache: auto (as config.json says), bfloat16, float16, float32.",
    "load_format": "auto, or dummy: random weights, for benchmarks.",
    "max_model_len": "Tokens of prompt and output. [default: the model's limit]",
    "max_num_seqs": "Sequences that run at once.",
    "max_num_batched_tokens": "Tokens of one prefill step.",
    "page_size": "Tokens per page of the KV cache: 16, 32, 64, 128.",
    "num_pages": "Pages of the KV cache. [default: what the memory holds]",
    "kv_cache_memory_bytes": "Memory for the KV cache, instead of a number of pages.",
    "gpu_memory_utilization": "Share of the GPU's memory to use.",
    "mode": "continuous, static, static-padded, unbatched.",
    "policy": "Who is admitted first: fcfs, sjf, ljf, priority.",
    "device": "auto, cpu, cuda.",
}
SAMPLING_HELP = {
    "max_tokens": "Tokens to generate at most. [default: to the end of the context]",
    "min_tokens": "Tokens to generate before a stop token may come.",
    "temperature": "0 is greedy.",
    "top_p": "Keep the likeliest tokens that make up this probability.",
    "top_k": "Keep this many of the likeliest tokens; 0 keeps all.",
    "min_p": "Keep tokens at least this share as likely as the likeliest.",
    "stop": "End at this text; may be repeated.",
    "ignore_eos": "Go on past end-of-sequence.",
}


def with_options(
    *groups: tuple[type, dict[str, str]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each named field, and pass it one dictionary per group in front of its own
    arguments: those flags that were given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = [[_flag(cls, name, text) for name, text in helps.items()] for cls, helps in groups]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            options = [{flag.name: arguments.pop(flag.name) for flag in group} for group in flags]
            command(
                *[{k: v for k, v in group.items() if v not in (None, [])} for group in options], **arguments
            )

        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        parameters = own + [flag for group in flags for flag in group]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # or its signature would be read instead
        return run

    return decorate


def _flag(cls: type, name: str, text: str) -> inspect.Parameter:
    field = {f.name: f for f in dataclasses.fields(cls)}[name]
    kind: Any = list[str] if name == "stop" else _scalar(typing.get_type_hints(cls)[name])
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=[] if name == "stop" else field.default,
        annotation=Annotated[kind, typer.Option(help=text, show_default=field.default is not None)],
    )


def _scalar(hint: Any) -> Any:
    """int, float, bool or str, optional where the field is."""
    if typing.get_origin(hint) is typing.Literal:
        return str
    members = [t for t in typing.get_args(hint) if t is not type(None)]
    return members[0] | None if members else hint


ENGINE = (EngineConfig, ENGINE_HELP)
SAMPLING = (SamplingParams, SAMPLING_HELP)
