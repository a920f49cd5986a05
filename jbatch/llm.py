"""LLM: a model directory in, texts out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import weights
from jbatch.attention import choose_attention
from jbatch.config import EngineConfig, ModelConfig, ModeName, PolicyName
from jbatch.config_json import load_bos_token_id, load_eos_token_ids
from jbatch.device import find_device, memory_of, prepare_jax
from jbatch.engine import Engine
from jbatch.errors import ConfigError, check_option_names
from jbatch.memory_plan import choose_num_pages
from jbatch.model import abstract_params
from jbatch.outputs import RequestOutput
from jbatch.policy import MODES, POLICIES, Policy
from jbatch.progress import progress_bar
from jbatch.prompts import Asked, Prompt, check_idle, list_requests
from jbatch.resolve import resolve_buckets, resolve_max_model_len, resolve_model
from jbatch.runner import Runner, largest_programs, programs_for, temp_bytes
from jbatch.sampling_params import SamplingParams
from jbatch.scheduler import Limits, Scheduler, SchedulerConfig, StepLimits
from jbatch.state import StateShape
from jbatch.stream import AsyncStream, TextDelta, flatten, stream_steps
from jbatch.tokenizer import Tokenizer, load_tokenizer


class LLM:
    """A model, ready to generate.

    Args:
      model: a Hugging Face model directory, or one that `jbatch convert` wrote.
      tokenizer: another directory to take the tokenizer from.
      options: the fields of EngineConfig, by name.

    Raises:
      ConfigError: for a model or an option that jbatch refuses, naming it.
      weights.WeightsError: for weights that do not fit the model, naming the tensor.
      TypeError: for an unknown option, suggesting the closest known one.
    """

    def __init__(self, model: str | Path, *, tokenizer: str | Path | None = None, **options: Any):
        check_option_names(options, EngineConfig.__dataclass_fields__, "LLM")
        self.config = EngineConfig(**options)
        model_dir = Path(model)
        self.model_config = resolve_model(model_dir, self.config)
        self.max_model_len = resolve_max_model_len(self.config, self.model_config)
        self._tokenizer = load_tokenizer(tokenizer or model_dir, load_bos_token_id(model_dir))
        prepare_jax(self.config)
        self.runner = _runner(self.config, self.model_config, self.max_model_len, model_dir)
        self._eos_token_ids = _eos_token_ids(model_dir, self._tokenizer)
        self._request_ids = itertools.count()
        self.engine = self.new_engine()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt; results in the order of the prompts.

        A prompt that cannot be served ends with finish_reason "error" and the reason in `error`; the
        others go on.

        Args:
          prompts: one, or a list: text, token ids, or vLLM's dictionaries.
          sampling_params: for all prompts, or one for each.
          priority: of each prompt, for policy "priority"; lower runs first.
          use_tqdm: show a progress bar, on a terminal.

        Raises:
          ValueError: for lists of different lengths.
          TypeError: for sampling_params that are none.
          JBatchError: while `self.engine` has unfinished requests that were added by hand.
        """
        asked = self._ask(prompts, sampling_params, priority)
        outputs: dict[str, RequestOutput] = {}
        try:
            for one in asked:
                if (refused := one.add_to(self.engine)) is not None:
                    outputs[one.request_id] = refused
            self._run(outputs, {one.request_id for one in asked}, use_tqdm)
        except BaseException:  # an interrupt included: the engine must be clean for the next call
            for one in asked:
                self.engine.abort(one.request_id)
            raise
        return [outputs[one.request_id] for one in asked]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> Iterator[TextDelta]:
        """Complete each prompt, as `generate` does, and give the texts piece by piece while they grow.

        The pieces of one sample, joined, are its text in `generate`. None breaks a character, or shows the
        beginning of what turns out to be a stop string. The request's output comes with its last piece.
        Who leaves the iteration early (or closes the iterator) aborts what has not ended.
        """
        return flatten(stream_steps(self.engine, self._ask(prompts, sampling_params, priority)))

    def astream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> AsyncStream:
        """`stream` for `async for`: the engine's steps run in a thread, and the event loop goes on."""
        return AsyncStream(stream_steps(self.engine, self._ask(prompts, sampling_params, priority)))

    def _ask(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> list[Asked]:
        """Raises what `generate` raises for its arguments."""
        check_idle(self.engine)
        return list_requests(prompts, sampling_params, priority, self._request_ids)

    def _run(self, outputs: dict[str, RequestOutput], wanted: set[str], show_progress: bool) -> None:
        """Step until all that is wanted is in `outputs`."""
        num_tokens, begin = 0, time.monotonic()
        with progress_bar("generating", len(wanted), enabled=show_progress) as update:
            while len(outputs) < len(wanted):
                step = self.engine.step()
                outputs.update((o.request_id, o) for o in step.outputs if o.request_id in wanted)
                num_tokens += sum(len(new.token_ids) for new in step.progress)
                update(len(outputs), f"{num_tokens / (time.monotonic() - begin):.0f} tokens/s")
        while self.engine.has_unfinished:  # the step that was launched before the last end was known
            self.engine.step()

    def new_engine(
        self,
        *,
        mode: ModeName | None = None,
        policy: PolicyName | Policy | None = None,
        limits: Limits | None = None,
    ) -> Engine:
        """A fresh engine on the same weights, cache and compiled programs: for another mode, another order of
        admission (a name, or any sort key), or other budgets per step.

        Only one engine of an LLM may have unfinished requests at a time. `generate` uses `self.engine`,
        which may be set to it.
        """
        config = dataclasses.replace(self.config, mode=mode or self.config.mode)
        key = policy or config.policy
        prefill, decode = resolve_buckets(config, self.max_model_len)
        scheduler = Scheduler(
            SchedulerConfig(
                num_rows=config.max_num_seqs,
                num_pages=self.runner.shape.num_pages,
                page_size=config.page_size,
                max_model_len=self.max_model_len,
                decode_buckets=decode,
                prefill_buckets=prefill,
                policy=key if callable(key) else POLICIES[key],
                admission=MODES[config.mode],
            ),
            limits or (lambda view: StepLimits(config.max_num_batched_tokens, config.max_num_seqs)),
        )
        return Engine(
            scheduler,
            self.runner,
            vocab_size=self.model_config.vocab_size,
            eos_token_ids=self._eos_token_ids,
            tokenizer=self._tokenizer,
            seed=config.seed,
            overlap=config.overlap,
        )

    def get_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None where the model directory has none."""
        return self._tokenizer

    def close(self) -> None:
        """Free the device's memory. The LLM cannot be used afterwards."""
        self.runner.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _runner(config: EngineConfig, model: ModelConfig, max_model_len: int, model_dir: Path) -> Runner:
    device = find_device(config.device)
    like = abstract_params(model)
    shardings = dict.fromkeys(like, jax.sharding.SingleDeviceSharding(device))
    if config.load_format == "dummy":
        params = weights.random(like, config.seed, shardings=shardings)
    else:
        params = weights.load(model_dir, like, shardings)
    prefill, decode = resolve_buckets(config, max_model_len)
    pages_per_seq = -(-max_model_len // config.page_size)
    shape = StateShape(config.max_num_seqs, 2, config.page_size, pages_per_seq)
    buckets = prefill + decode
    attention = choose_attention(config.attention_backend, model, shape, buckets, device)
    step_bytes = 0
    if device.platform != "cpu":  # temporaries do not grow with the pool: measure them with a small one
        for program in largest_programs(buckets):
            step_bytes = max(step_bytes, temp_bytes(model, shape, program, device, attention))
    num_pages = choose_num_pages(config, model, max_model_len, memory_of(device)._replace(step=step_bytes))
    with progress_bar("compiling", len(programs_for(buckets)), enabled=config.show_progress) as update:
        try:
            shape = shape._replace(num_pages=num_pages)
            return Runner(model, params, shape, buckets, device, update, attention)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise _out_of_memory(config, model, params, num_pages, step_bytes) from error


def _out_of_memory(
    config: EngineConfig, model: ModelConfig, params: dict[str, jax.Array], num_pages: int, step_bytes: int
) -> ConfigError:
    weight_bytes = sum(leaf.nbytes for leaf in params.values())
    cache_bytes = num_pages * config.page_size * model.kv_bytes_per_token
    return ConfigError(
        "num_pages",
        num_pages,
        f"out of memory: {weight_bytes} bytes of weights, {cache_bytes} of KV cache and {step_bytes} for the "
        "largest step do not fit; lower num_pages (or gpu_memory_utilization) or max_num_batched_tokens",
    )


def _eos_token_ids(model_dir: Path, tokenizer: Tokenizer | None) -> frozenset[int]:
    """What config, generation config and tokenizer name, together: Llama 3 has three."""
    eos = load_eos_token_ids(model_dir)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        eos |= {tokenizer.eos_token_id}
    return eos
