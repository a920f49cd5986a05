"""What is asked of every arm of a comparison: prompts, output lengths and arrival times, from a seed alone.

Output lengths are forced (end-of-sequence is ignored), so that the work is the same in every arm. Token ids
are random and no two prompts are equal, so that nothing can be served from a prefix cache, but where a
workload shares prefixes on purpose.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.options import ARRIVAL_OPTIONS, WorkloadOptions
from bench.workloads import arrivals, lengths
from bench.workloads.trace import read_trace
from jbatch.errors import ConfigError, JBatchError, check_option_names

FIRST_ID = 3  # below it, models keep their special tokens
OWN_OPTIONS = {  # which workloads they mean something for; the others are of all
    "input_len": ("random", "prefix"),
    "output_len": ("random", "prefix"),
    "random_range_ratio": ("random", "prefix"),
    "prefix_len": ("prefix",),
    "num_prefixes": ("prefix", "few-shot"),
    "dataset_path": ("trace",),
    "burst_size": ("bursty_traffic",),
}
TIMED = ("trace", "bursty_traffic")  # workloads with arrival times of their own
MAX_DRAWS = 100  # of a prompt that has been drawn before


class WorkloadError(JBatchError, ValueError):
    """A workload that cannot be made, saying why."""


class WorkItem(NamedTuple):
    """One request: `output_len` tokens are wanted, `arrival` seconds after the run's begin."""

    prompt_token_ids: tuple[int, ...]
    output_len: int
    arrival: float


class Workload(NamedTuple):
    """Requests in order of arrival. `scales`: what was changed from what the name says, as numbers."""

    name: str
    items: tuple[WorkItem, ...]
    seed: int
    scales: dict[str, Any]

    @property
    def hash(self) -> str:
        """A digest of lengths, ids and arrivals: equal hashes are equal work."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.output_len} {item.arrival!r} {item.prompt_token_ids}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(item.prompt_token_ids) for item in self.items)

    @property
    def num_output_tokens(self) -> int:
        """Tokens that all requests want."""
        return sum(item.output_len for item in self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(len(item.prompt_token_ids) + item.output_len for item in self.items)

    def arriving(self, times: Iterable[float]) -> Workload:
        """The same requests at other times."""
        items = tuple(item._replace(arrival=float(t)) for item, t in zip(self.items, times, strict=True))
        return self._replace(items=items)


def check_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a workload that is none, and for an option that means nothing for any of them."""
    for name in names:
        _check_name(name)
    for option, value in options.items():
        meant = OWN_OPTIONS.get(option, names)
        if not set(meant) & set(names):
            raise ConfigError(
                option, value, f"is of {' and '.join(meant)} only, not of {', '.join(names)}: leave it out"
            )
    _check_arrivals(names, options)


def _check_arrivals(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option of arrivals that another one leaves without a meaning."""
    at_rate = options.get("request_rate", math.inf) != math.inf
    reasons = {}
    if options.get("closed"):
        reasons = dict.fromkeys(ARRIVAL_OPTIONS, "with --closed all arrive at time 0: leave one of them out")
    elif at_rate:
        reasons["burst_size"] = "with --request-rate they arrive one by one: leave one of them out"
    else:
        reasons["burstiness"] = "is of arrivals at a rate: give --request-rate, too"
        if not set(TIMED) & set(names):
            reasons["time_scale"] = "all arrive at time 0: give --request-rate, too"
    for option, reason in reasons.items():
        if option in options:
            raise ConfigError(option, options[option], reason)


def _check_name(name: str) -> None:
    if name not in lengths.NAMES:
        raise ConfigError("dataset_name", name, f"must be one of {', '.join(lengths.NAMES)}")


def make_workload(
    name: str, *, num_prompts: int, seed: int, vocab_size: int, max_model_len: int, **options: Any
) -> Workload:
    """A workload by name, the same for the same arguments.

    Args:
      name: one of `lengths.NAMES`.
      num_prompts: requests; of a trace, the first so many.
      max_model_len: tokens that a request may have. Lengths of "sharegpt-like" and "trace" are capped to it,
        and `scales["capped"]` counts how many; of the others, longer ones are an error.
      options: the fields of WorkloadOptions, by name.

    Raises:
      ConfigError: for an unknown workload, or an option out of its range.
      TypeError: for an unknown option, suggesting the closest known one.
      TraceError: for a trace that cannot be read, with the line.
      WorkloadError: for lengths that do not fit the model.
    """
    _check_name(name)
    if not isinstance(num_prompts, int) or num_prompts < 1:
        raise ConfigError("num_prompts", num_prompts, "must be an integer of at least 1")
    check_option_names(options, WorkloadOptions.__dataclass_fields__, "make_workload")
    chosen = WorkloadOptions(**options)
    draws = [np.random.default_rng([seed, stream]) for stream in range(4)]  # so that each can change alone
    if name == "trace":
        if chosen.dataset_path is None:
            raise ConfigError("dataset_path", None, "a trace needs a file: --dataset-path FILE.csv")
        trace = read_trace(chosen.dataset_path, num_prompts)
        prompts, outputs, times = trace.prompt_lens, trace.output_lens, trace.arrivals
    else:
        prompts, outputs = lengths.draw(name, num_prompts, draws[0], chosen)
        times = np.zeros(num_prompts)
    prompts, outputs = (_scaled(lens, chosen.length_scale) for lens in (prompts, outputs))
    shared = _prefix_len(name, chosen)
    prefix = _scaled(np.array([shared]), chosen.length_scale)[0] if shared else 0
    prompts, outputs, num_capped = _fit(name, prompts + prefix, outputs, max_model_len)
    token_ids = _token_ids(prompts, int(prefix), chosen.num_prefixes, vocab_size, draws[1])
    times = arrivals.times(name, times, draws[2], chosen) * chosen.time_scale
    order = np.argsort(times, kind="stable")
    items = tuple(WorkItem(token_ids[i], int(outputs[i]), float(times[i])) for i in order)
    return Workload(name, items, seed, _scales(name, chosen, num_capped))


def _prefix_len(name: str, options: WorkloadOptions) -> int:
    """Tokens that prompts share, before scaling."""
    if name == "few-shot":
        return lengths.FEW_SHOT_PREFIX
    return options.prefix_len if name == "prefix" else 0


def _scaled(values: np.ndarray, scale: float) -> np.ndarray:
    return np.maximum(1, np.rint(values * scale)).astype(int)


def _fit(
    name: str, prompts: np.ndarray, outputs: np.ndarray, max_model_len: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Lengths that the context holds, and how many requests had to be shortened."""
    too_long = prompts + outputs > max_model_len
    if not too_long.any():
        return prompts, outputs, 0
    if name not in lengths.CAPPED:
        most = int((prompts + outputs).max())
        raise WorkloadError(
            f"{name}: a request of {most} tokens does not fit max_model_len={max_model_len}; "
            "lower --length-scale, or --input-len and --output-len"
        )
    outputs = np.where(too_long, np.minimum(outputs, max(1, max_model_len // 2)), outputs)
    prompts = np.where(too_long, np.minimum(prompts, max_model_len - outputs), prompts)
    return prompts, outputs, int(too_long.sum())


def _token_ids(
    prompt_lens: np.ndarray, prefix_len: int, num_prefixes: int, vocab_size: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Random ids, no two prompts alike; of `num_prefixes` shared beginnings where there is a prefix."""
    low = min(FIRST_ID, vocab_size - 1)
    prefixes = rng.integers(low, vocab_size, (num_prefixes, prefix_len)).tolist()
    seen: set[tuple[int, ...]] = set()
    prompts = []
    for number, length in enumerate(prompt_lens.tolist()):
        for _ in range(MAX_DRAWS):
            own = rng.integers(low, vocab_size, length - prefix_len).tolist()
            prompt = tuple(prefixes[number % num_prefixes] + own)
            if prompt not in seen:
                break
        else:
            raise WorkloadError(
                f"{len(prompt_lens)} prompts of which no two are equal cannot be drawn: prompt {number} has "
                f"{length} tokens of a vocabulary of {vocab_size}; raise --length-scale"
            )
        seen.add(prompt)
        prompts.append(prompt)
    return prompts


def _scales(name: str, options: WorkloadOptions, num_capped: int) -> dict[str, Any]:
    """The workload's options that are not as they are by default; both scales always."""
    changed: dict[str, Any] = {"length_scale": options.length_scale, "time_scale": options.time_scale}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and name in OWN_OPTIONS.get(field.name, (name,)):
            changed[field.name] = Path(value).name if field.name == "dataset_path" else value
    return changed | ({"capped": num_capped} if num_capped else {})
