"""LLM: a model directory in, texts out."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import weights
from jbatch.attention import choose_attention
from jbatch.config import EngineConfig, ModelConfig, ModeName, PolicyName
from jbatch.config_json import load_bos_token_id, load_eos_token_ids
from jbatch.device import find_device, memory_of, prepare_jax
from jbatch.engine import Engine
from jbatch.errors import ConfigError, JBatchError, RequestError, check_option_names
from jbatch.memory_plan import choose_num_pages
from jbatch.model import abstract_params
from jbatch.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from jbatch.policy import MODES, POLICIES, Policy
from jbatch.progress import progress_bar
from jbatch.resolve import resolve_buckets, resolve_max_model_len, resolve_model
from jbatch.runner import Runner, largest_programs, programs_for, temp_bytes
from jbatch.sampling_params import SamplingParams
from jbatch.scheduler import Limits, Scheduler, SchedulerConfig, StepLimits
from jbatch.state import StateShape
from jbatch.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Sequence[int] | dict[str, Any]  # text, token ids, {"prompt": ...} or {"prompt_token_ids": ...}


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
        if self.engine.num_unfinished:
            raise JBatchError(
                f"the engine has {self.engine.num_unfinished} unfinished requests: step it first"
            )
        listed = _as_list(prompts)
        params = _params_of_each(sampling_params, len(listed))
        priorities = [0] * len(listed) if priority is None else list(priority)
        outputs: dict[str, RequestOutput] = {}
        request_ids = [str(next(self._request_ids)) for _ in listed]
        try:
            for request_id, prompt, one, rank in zip(request_ids, listed, params, priorities, strict=True):
                try:
                    content = _content(prompt)
                    self.engine.add_request(request_id, content, one, priority=rank)
                except RequestError as error:
                    outputs[request_id] = _refused(request_id, prompt, error)
            self._run(outputs, set(request_ids), use_tqdm)
        except BaseException:  # an interrupt included: the engine must be clean for the next call
            for request_id in request_ids:
                self.engine.abort(request_id)
            raise
        return [outputs[request_id] for request_id in request_ids]

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


def _as_list(prompts: Any) -> list[Prompt]:
    """A list of prompts, also of a single one: a string, a dictionary, or a list of integers."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    one = len(prompts) > 0 and all(isinstance(item, numbers.Integral) for item in prompts)
    return [prompts] if one else list(prompts)


def _content(prompt: Prompt) -> str | Sequence[int]:
    if not isinstance(prompt, dict):
        return prompt
    if list(prompt) not in (["prompt"], ["prompt_token_ids"]):
        raise RequestError("prompt", list(prompt), "a dictionary holds either prompt or prompt_token_ids")
    return next(iter(prompt.values()))


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(
            f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one for each"
        )
    for one in params:
        if not isinstance(one, SamplingParams):
            raise TypeError(f"sampling_params holds {one!r}, which is no SamplingParams")
    return list(params)


def _refused(request_id: str, prompt: Prompt, error: RequestError) -> RequestOutput:
    """The output of a request that never ran."""
    content = prompt if not isinstance(prompt, dict) else prompt.get("prompt", prompt.get("prompt_token_ids"))
    now = time.monotonic()
    return RequestOutput(
        request_id=request_id,
        prompt=content if isinstance(content, str) else None,
        prompt_token_ids=list(content) if isinstance(content, (list, tuple)) else [],
        outputs=[CompletionOutput(0, "", [], FinishReason.ERROR)],
        metrics=RequestMetrics(now, None, None, None, now, 0, 0),
        error=str(error),
    )
