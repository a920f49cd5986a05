"""`jbatch generate MODEL -i in.jsonl -o out.jsonl`: a job from the options of the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.config import EngineConfig
from jbatch.jobs.answerer import Answerer
from jbatch.jobs.input import Parse, Scan
from jbatch.jobs.open_job import JobCommand
from jbatch.jobs.options import JobOptions
from jbatch.jobs.report import Say
from jbatch.jobs.request_line import RequestLine, parse_line
from jbatch.jobs.run import run_command
from jbatch.jobs.state import JobState, fingerprint
from jbatch.model_dir.generation_json import load_sampling_defaults
from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
from jbatch.model_dir.tuned import check_tuned
from jbatch.sampler import Sampler, to_compile
from jbatch.sampling_params import SamplingParams
from jbatch.text.chat_options import read_chat_template

DEPENDS_ON = ("seed", "dtype", "max_model_len", "load_format")  # engine options that change the texts


class Needs(NamedTuple):
    """What the lines of a job, or of several, need of an engine, as a Scan says it."""

    num_samples: int
    samplers: tuple[Sampler, ...]


@dataclasses.dataclass(frozen=True)
class JobModel:
    """A model and options, checked: what any number of jobs have in common."""

    model: Path
    llm_options: Mapping[str, Any]
    sampling_defaults: Mapping[str, Any]  # of lines, the model's included
    state: JobState  # of no input yet
    model_defaults: Mapping[str, Any]  # sampling parameters that the model sets, where no option does

    def parse(self, raw: bytes) -> RequestLine:
        """Read and check one line. Raises LineError."""
        return parse_line(raw, self.sampling_defaults)

    def load(self, needs: Needs | Scan) -> AbstractContextManager[Answerer]:
        """Load the model for what lines need."""
        return load_answerer(self.model, dict(self.llm_options), self.parse, needs)

    def command(self, options: JobOptions, say: Say) -> JobCommand:
        """One job."""
        path = os.path.abspath(options.input) if os.path.isfile(options.input) else None
        state = dataclasses.replace(self.state, shard=options.shard, input_file=path)

        def state_of(sha256: str) -> JobState:
            return dataclasses.replace(state, input=sha256)

        return JobCommand(options, state_of, self.parse, self.load, say, self.model_defaults)


def job_model(
    model: Path,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    chat_template: str | None = None,
) -> JobModel:
    """Check a model and options; nothing is loaded. Raises ConfigError."""
    config = EngineConfig(**engine_options)
    SamplingParams(**sampling_options)
    model_config = resolve_model(model, config)
    resolve_max_model_len(config, model_config)  # what LLM would refuse, before the input
    check_tuned(config, model_config)
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
    engine = {name: getattr(config, name) for name in DEPENDS_ON}
    if config.logprobs_mode != EngineConfig.logprobs_mode:  # older jobs do not name it
        engine["logprobs_mode"] = config.logprobs_mode
    return JobModel(
        model=model,
        llm_options={**engine_options, "chat_template": chat_template},
        sampling_defaults=defaults,
        state=JobState(input="", shard="", model=files, engine=engine, sampling=changed),
        model_defaults={name: value for name, value in of_model.items() if name not in sampling_options},
    )


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
    checked = job_model(model, engine_options, sampling_options, chat_template)
    return run_command(checked.command(options, say))


@contextmanager
def load_answerer(
    model: Path, llm_options: dict[str, Any], parse: Parse, needs: Needs | Scan
) -> Iterator[Answerer]:
    """Load a model, for what lines need."""
    from jbatch.device.numerics import numerics_of  # loads jax
    from jbatch.llm import LLM

    options = dict(llm_options)
    options.setdefault("max_num_seqs", min(max(needs.num_samples, 1), EngineConfig.max_num_seqs))
    options["samplers"] = [sampler.name.lower() for sampler in to_compile(needs.samplers)] or ["greedy"]
    with LLM(model, **options) as llm:
        yield Answerer(
            llm.engine,
            parse,
            lambda messages, options: llm.chat_encoder.encode(messages, options).token_ids,
            lambda: llm.runner.compilations_after_warmup,
            llm.prepare,  # for whatever comes
            numerics_of(llm.runner.spec),
        )
