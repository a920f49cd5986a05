"""`jbatch generate MODEL -i in.jsonl -o out.jsonl`: a job from the options of the command line."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jbatch.config import EngineConfig
from jbatch.jobs.answerer import Answerer
from jbatch.jobs.input import Parse, Scan
from jbatch.jobs.options import JobOptions
from jbatch.jobs.report import Say
from jbatch.jobs.request_line import parse_line
from jbatch.jobs.run import JobCommand, run_command
from jbatch.jobs.state import JobState, fingerprint
from jbatch.model_dir.generation_json import load_sampling_defaults
from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
from jbatch.sampling_params import SamplingParams, to_compile
from jbatch.text.chat_options import read_chat_template

DEPENDS_ON = ("seed", "dtype", "max_model_len", "load_format")  # engine options that change the texts


def run_generate(
    model: Path,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    job_options: dict[str, Any],
    say: Say,
    chat_template: str | None = None,
) -> int:
    """The exit code of `jbatch generate -i`: 0 where every line has an answer, 1 where some results are
    errors, 3 where the job had to stop, 130 and 143 after SIGINT and SIGTERM; all but the first two can go
    on with the same command.

    Args:
      chat_template: instead of the model's, for lines that name none: its text, or the path of its file.

    Raises:
      ConfigError: for what is refused before it begins.
      OSError: for an input that cannot be read, or an output that cannot be opened.
    """
    options = JobOptions(**job_options)
    config = EngineConfig(**engine_options)
    SamplingParams(**sampling_options)
    resolve_max_model_len(config, resolve_model(model, config))  # what LLM would refuse, before the input
    of_model = load_sampling_defaults(model, config.generation_config)
    defaults = {**of_model, **sampling_options}
    params = SamplingParams(**defaults)
    default = SamplingParams()
    changed = {
        name: getattr(params, name)
        for name in SamplingParams.__dataclass_fields__
        if getattr(params, name) != getattr(default, name)
    }
    files = fingerprint(model)
    if chat_template is not None:
        files["--chat-template"] = hashlib.sha256(read_chat_template(chat_template).encode()).hexdigest()

    def state_of(sha256: str) -> JobState:
        engine = {name: getattr(config, name) for name in DEPENDS_ON}
        if config.logprobs_mode != EngineConfig.logprobs_mode:  # older jobs do not name it
            engine["logprobs_mode"] = config.logprobs_mode
        return JobState(
            input=sha256,
            shard=options.shard,
            model=files,
            engine=engine,
            sampling=changed,
            input_file=os.path.abspath(options.input) if os.path.isfile(options.input) else None,
        )

    parse = functools.partial(parse_line, defaults=defaults)
    load = functools.partial(_load, model, {**engine_options, "chat_template": chat_template}, parse)
    in_force = {name: value for name, value in of_model.items() if name not in sampling_options}
    return run_command(JobCommand(options, state_of, parse, load, say, in_force))


@contextmanager
def _load(model: Path, llm_options: dict[str, Any], parse: Parse, scan: Scan) -> Iterator[Answerer]:
    """Load the model, with what the lines need."""
    from jbatch.device.numerics import numerics_of  # loads jax
    from jbatch.llm import LLM

    options = dict(llm_options)
    options.setdefault("max_num_seqs", min(max(scan.num_samples, 1), EngineConfig.max_num_seqs))
    options["samplers"] = [sampler.name.lower() for sampler in to_compile(scan.samplers)] or ["greedy"]
    with LLM(model, **options) as llm:
        yield Answerer(
            llm.engine,
            parse,
            lambda messages, options: llm.chat_encoder.encode(messages, options).token_ids,
            lambda: llm.runner.compilations_after_warmup,
            llm.prepare,  # for whatever comes
            numerics_of(llm.runner.spec),
        )
