"""Command-line flags from the fields of dataclasses, so that each option is written down once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from jbatch.cli.help import choices
from jbatch.config import DTYPES, PAGE_SIZES, EngineConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.tuned import with_tuned
from jbatch.names_elsewhere import instead_of, nearest_name
from jbatch.sampling_params import SamplingParams
from jbatch.sizes import parse_bytes

ENGINE_HELP = {
    "dtype": "Of weights, activations and cache; auto: as config.json says, on a CPU float32.",
    "load_format": "dummy: random weights, for benchmarks.",
    "max_model_len": "Tokens of prompt and output. [default: the model's limit]",
    "max_num_seqs": "Sequences that run at once. [default: as many as prompts, 64 at most]",
    "max_num_batched_tokens": "Prompt tokens of one step.",
    "target_itl_ms": "Fewer prompt tokens beside what decodes, where steps take longer than that.",
    "page_size": "Tokens per page of the KV cache.",
    "num_pages": "Pages of the KV cache. [default: what the memory holds]",
    "kv_cache_memory_bytes": "Memory for the KV cache, as 4GiB, instead of a number of pages.",
    "gpu_memory_utilization": "Share of the GPU's memory to use.",
    "mode": "When requests that wait may join those that run.",
    "batch_wait_timeout_s": "static-full: seconds that the oldest request waits for a full batch.",
    "policy": "Who is admitted first.",
    "admission": "Pages kept for those that run: none, as many as they will likely need, all.",
    "max_preemption_probability": "forecast: of admitting what must be preempted later.",
    "predictor": "Of output lengths, for policies and admissions; a file is one of `jbatch predictor train`.",
    "tuned": "A file of `jbatch tune`: its options in the place of the defaults here.",
    "device": "Where to compute; auto: a GPU where there is one.",
    "tensor_parallel_size": "Devices of this machine that compute each step together, each a part of it.",
    "data_parallel_size": "Replicas of the model, each on devices of its own, that share the requests.",
    "attention_backend": "Kernels; auto: on a GPU those that pass a check there; xla: plain JAX.",
    "logprobs_mode": "Log-probabilities of output tokens: the model's own, or as drawn.",
    "enable_prefix_caching": "Compute prompts' common first tokens once. It is on by default.",
    "seed": "Every request's own seed is derived from it.",
    "generation_config": "Whose sampling defaults; auto: those of the model's generation_config.json.",
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
ENGINE_PANELS = {
    "Model": ("dtype", "load_format", "max_model_len"),
    "Scheduling": (
        *("max_num_seqs", "max_num_batched_tokens", "target_itl_ms", "mode", "batch_wait_timeout_s"),
        *("policy", "admission", "max_preemption_probability", "predictor", "tuned"),
    ),
    "Memory": (
        *("page_size", "num_pages", "kv_cache_memory_bytes", "gpu_memory_utilization"),
        "enable_prefix_caching",
    ),
    "Devices": ("device", "attention_backend", "tensor_parallel_size", "data_parallel_size"),
    "Sampling": ("seed", "generation_config", "logprobs_mode"),
}
CHOICES: dict[str, Sequence[Any]] = {"dtype": ("auto", *DTYPES), "page_size": PAGE_SIZES}
SHORT_FLAGS = {"input_file": ("-i",), "output_file": ("-o",)}
NUMBERS = {int: "an integer", float: "a number"}
METAVARS = {int: "N", float: "X", str: "TEXT"}
NAMED_METAVARS = {
    "kv_cache_memory_bytes": "SIZE",
    "predictor": choices(("running-mean", "prompt-length"), "FILE"),
    "shard": "I/N",
    **dict.fromkeys(("input_file", "output_file", "summary", "metrics_file", "trace", "tuned"), "FILE"),
}


class Flags(NamedTuple):
    """Flags of a command, from fields of a dataclass.

    Attributes:
      helps: what each field's flag does.
      panels: in help, the fields under each heading; those that are in none stand under another one.
    """

    cls: type
    helps: Mapping[str, str]
    panels: Mapping[str, Sequence[str]] = {}

    def only(self, *names: str) -> Flags:
        """Some of the flags, in this order."""
        return self._replace(helps={name: self.helps[name] for name in names})

    def with_helps(self, **helps: str) -> Flags:
        """With other texts for some of them, or more of them."""
        return self._replace(helps={**self.helps, **helps})


def with_options(*groups: Flags | type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command more flags, and pass it what they say in front of its own arguments, group by group: of
    Flags a dictionary with those that were given; of a frozen dataclass, whose fields are annotated as the
    parameters of a command are, an instance."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = [flag for group in groups for flag in _flags(group)]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            values = {flag.name: arguments.pop(flag.name) for flag in flags}
            command(*[_options(group, values) for group in groups], **arguments)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        parameters = own + flags
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # or its signature would be read instead
        return run

    return decorate


def _flags(group: Flags | type[Any]) -> list[inspect.Parameter]:
    """The flags of a group."""
    if isinstance(group, Flags):
        return [_flag(group, name) for name in group.helps]
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _options(group: Flags | type[Any], values: Mapping[str, Any]) -> Any:
    """What a command is passed for a group, of the values of all flags."""
    if not isinstance(group, Flags):
        return group(**{field.name: values[field.name] for field in dataclasses.fields(group)})
    given = {name: values[name] for name in group.helps if values[name] not in (None, [])}
    options = {name: _parse(group.cls, name, value) for name, value in given.items()}
    return with_tuned(options) if "tuned" in options else options


def _flag(group: Flags, name: str) -> inspect.Parameter:
    """A flag that is None where it is not given; its help names the field's choices and default."""
    cls, text = group.cls, group.helps[name]
    default = {f.name: f for f in dataclasses.fields(cls)}[name].default
    kind = _kind(cls, name)
    if default is not None and kind is not bool and "[default" not in text:
        text += f" [default: {default}]"
    flag = f"--{name.replace('_', '-')}"
    if kind is bool and default:  # there is something to turn off
        flag += f"/--no-{flag.removeprefix('--')}"
    names = flag, *SHORT_FLAGS.get(name, ())
    panel = next((panel for panel, fields in group.panels.items() if name in fields), None)
    option = typer.Option(*names, help=text, metavar=_metavar(cls, name), rich_help_panel=panel)
    annotation: Any = bool if kind is bool else list[str] if name == "stop" else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option]
    )


def _metavar(cls: type, name: str) -> str | None:
    """What stands behind a flag in help; None for one that takes nothing."""
    hint = typing.get_type_hints(cls)[name]
    if typing.get_origin(hint) is typing.Literal:
        return choices(typing.get_args(hint))
    if name in CHOICES:
        return choices(CHOICES[name])
    if Path in typing.get_args(hint):
        return "FILE"
    return NAMED_METAVARS.get(name) or METAVARS.get(_kind(cls, name))


def _kind(cls: type, name: str) -> Any:
    """The type of a field, int, float, bool or str, also where it may be None, or is a list of these."""
    hint = typing.get_type_hints(cls)[name]
    if typing.get_origin(hint) is typing.Literal:
        return str
    return next((t for t in typing.get_args(hint) if t is not type(None)), hint)


def _parse(cls: type, name: str, value: Any) -> Any:
    """A flag's value as the field's type. Raises ConfigError for what is no number, or no size."""
    if NAMED_METAVARS.get(name) == "SIZE":
        return parse_bytes(name, value)
    kind = _kind(cls, name)
    if kind not in NUMBERS:
        return value
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(name, value, f"must be {NUMBERS[kind]}") from None


def flag_hint(flag: str, params: Iterable[Any]) -> str:
    """What may have been meant by a flag that a command with these parameters lacks: the nearest flag,
    or where else there is an option of this name. Begins with "; ", or is empty."""
    flags = {param.name: param.opts[0] for param in params if param.opts[0].startswith("--")}
    name = flag.lstrip("-").replace("-", "_")
    for cls, where in (
        (SamplingParams, "fields of JSONL lines and of SamplingParams"),
        (EngineConfig, "options of jbatch.LLM in Python"),
    ):
        if name in cls.__dataclass_fields__:
            return f"; {name} is among the {where}"
    if (instead := instead_of(name)) is not None:
        return f"; {instead}"
    nearest = nearest_name(name, flags) if len(name) > 1 else None
    return "" if nearest is None else f"; did you mean {flags[nearest]}?"


def argument_hint(params: Iterable[Any]) -> str:
    """With what flags a command with these parameters takes prompts or a model, which users give without
    one. Begins with "; ", or is empty."""
    flags = {flag for param in params for flag in param.opts}
    hints = [
        f"{what} with {flag}" for what, flag in (("prompts", "-p"), ("a model", "--model")) if flag in flags
    ]
    return f"; give {' and '.join(hints)}" if hints else ""


ENGINE = Flags(EngineConfig, ENGINE_HELP, ENGINE_PANELS)
SAMPLING = Flags(SamplingParams, SAMPLING_HELP, {"Sampling": tuple(SAMPLING_HELP)})
