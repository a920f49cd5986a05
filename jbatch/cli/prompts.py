"""`jbatch generate MODEL -p TEXT`: a few prompts, their texts on standard output."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from jbatch.config import EngineConfig
from jbatch.errors import ConfigError, OutputWarning
from jbatch.llm import LLM
from jbatch.model_dir.generation_json import describe_model_defaults, load_sampling_defaults
from jbatch.model_dir.paths import check_model_dir, why_no_tokenizer
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.text.chat import ChatEncoder


def generate_prompts(
    model: Path,
    say: Callable[[str], None],
    prompt: list[str],
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    chat: bool,
    chat_template: str | None,
) -> None:
    """Load a model for some prompts, print their texts in order, and what was done on standard error.

    Raises:
      typer.Exit: with exit code 1 where some of them failed.
    """
    config = EngineConfig(**engine_options)
    SamplingParams(**sampling_options)
    check_model_dir(model)
    if (reason := why_no_tokenizer(model)) is not None:
        raise ConfigError("model", str(model), reason)
    if chat and (reason := ChatEncoder(model, None, chat_template).why_no_template()) is not None:
        raise ConfigError("model", str(model), f"{reason}: leave --chat out, or give --chat-template FILE")
    defaults = load_sampling_defaults(model, config.generation_config)
    params = SamplingParams(**{**defaults, **sampling_options})
    # No more is compiled than these prompts need. Tokens are at most about as many as bytes, and the sizes of
    # programs are powers of two, so that another prompt finds them in the cache.
    num_bytes = sum(len(text.encode(errors="replace")) for text in prompt)
    most_tokens = min(max(128, 1 << num_bytes.bit_length()), EngineConfig.max_num_batched_tokens)
    engine_options.setdefault("max_num_seqs", min(len(prompt), EngineConfig.max_num_seqs))
    engine_options.setdefault("max_num_batched_tokens", most_tokens)
    engine_options["samplers"] = [params.sampler.name.lower()]
    with LLM(model, chat_template=chat_template, **engine_options) as llm, warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputWarning)  # each output is shown below
        if chat:
            outputs = llm.chat([[{"role": "user", "content": text}] for text in prompt], params)
        else:
            outputs = llm.generate(prompt, params)
        summary = llm.engine.summary
        compilations = llm.runner.compilations_after_warmup
    for number, output in enumerate(outputs, start=1):
        if output.error is None:
            typer.echo(f"{'' if chat else output.prompt}{output.outputs[0].text}")
        else:
            say(f"prompt {number} of {len(outputs)}: {output.error}")
    rate = _rate(outputs, summary.output_tokens)
    say(f"{summary.describe()}; {rate}{compilations} compilations after warm-up")
    if in_force := {name: value for name, value in defaults.items() if name not in sampling_options}:
        say(describe_model_defaults(in_force))
    if any(output.error is not None for output in outputs):
        raise typer.Exit(1)


def _rate(outputs: list[RequestOutput], num_tokens: int) -> str:
    """Tokens per second from the first step on: before it, programs are compiled."""
    ran = [o.metrics for o in outputs if o.metrics is not None and o.metrics.scheduled_ts is not None]
    if not ran:
        return ""
    elapsed_s = max(m.finished_ts for m in ran) - min(m.scheduled_ts or 0.0 for m in ran)
    return f"{num_tokens / max(elapsed_s, 1e-9):.0f} tokens/s; "
