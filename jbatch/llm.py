"""LLM: a model directory in, texts out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import weights
from jbatch.config import EngineConfig, ModelConfig, ModeName, PolicyName
from jbatch.device.backend import choose_attention
from jbatch.device.logits import LogitsFn, check_logits_fn
from jbatch.device.memory import choose_num_pages
from jbatch.device.model import abstract_params
from jbatch.device.platform import find_device, memory_of, prepare_jax
from jbatch.device.runner import Runner, Variants, largest_programs, programs_for, temp_bytes
from jbatch.device.state import StateShape
from jbatch.engine.engine import Engine
from jbatch.engine.prompts import Asked, Prompt, check_idle, list_requests
from jbatch.engine.scoring import SCORE_PARAMS, Score, score_of
from jbatch.engine.stream import AsyncStream, TextDelta, flatten, stream_steps
from jbatch.errors import ConfigError, RequestError, check_option_names
from jbatch.host.policy import MODES, POLICIES, Policy
from jbatch.host.scheduler import Limits, Scheduler, SchedulerConfig, StepLimits
from jbatch.model_dir.config_json import load_bos_token_id, load_eos_token_ids
from jbatch.model_dir.resolve import resolve_buckets, resolve_max_model_len, resolve_model
from jbatch.outputs import RequestOutput
from jbatch.progress import progress_bar
from jbatch.sampling_params import Sampler, SamplingParams
from jbatch.text.chat import ChatEncoder
from jbatch.text.messages import Conversation, list_conversations
from jbatch.text.tokenizer import Tokenizer, load_tokenizer


class LLM:
    """A model, ready to generate.

    Args:
      model: a Hugging Face model directory, or one that `jbatch convert` wrote.
      tokenizer: another directory to take the tokenizer from.
      logits_fn: a jittable function (logits [slots, vocab] float32, jbatch.LogitsState) -> logits, compiled
        into every step. Each row of its result must depend on the same row of its arguments alone. A token
        whose logit it sets to -inf is ruled out; a NaN ends that request with an error.
      options: the fields of EngineConfig, by name.

    Raises:
      ConfigError: for a model or an option that jbatch refuses, naming it.
      weights.WeightsError: for weights that do not fit the model, naming the tensor.
      TypeError: for an unknown option, suggesting the closest known one.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        logits_fn: LogitsFn | None = None,
        **options: Any,
    ):
        check_option_names(options, EngineConfig.__dataclass_fields__, "LLM")
        self.config = EngineConfig(**options)
        model_dir = Path(model)
        self.model_config = resolve_model(model_dir, self.config)
        self.max_model_len = resolve_max_model_len(self.config, self.model_config)
        tokenizer_dir = Path(tokenizer or model_dir)
        self._tokenizer = load_tokenizer(tokenizer_dir, load_bos_token_id(model_dir))
        self._chat = ChatEncoder(tokenizer_dir, self._tokenizer)
        prepare_jax(self.config)
        variants = _variants(self.config, self.model_config, self.max_model_len, logits_fn)
        self.runner = _runner(self.config, self.model_config, self.max_model_len, model_dir, variants)
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

    def score(self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True) -> list[Score]:
        """The log-probability and the rank of each prompt's tokens; nothing is generated.

        As `generate`: a prompt that cannot be served has its reason in `error`, and the others go on.
        """
        return [score_of(output) for output in self.generate(prompts, SCORE_PARAMS, use_tqdm=use_tqdm)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer conversations, each a list of messages, with the model's chat template.

        As `generate`: one that the template refuses ends with its error, and the others go on. `prompt` of an
        output is the rendered text.

        Args:
          messages: one conversation, or a list of them. A message has a role (system, user or assistant) and
            a content: text, or a list of text parts. Tools are not supported.

        Raises:
          ConfigError: where transformers or jinja2 is not installed.
        """
        rendered = [self._chat.encode_or_error(one) for one in list_conversations(messages)]
        prompts: list[Any] = [
            one if isinstance(one, RequestError) else list(one.token_ids) for one in rendered
        ]
        outputs = self.generate(prompts, sampling_params, use_tqdm=use_tqdm)
        return [
            output if isinstance(one, RequestError) else dataclasses.replace(output, prompt=one.text)
            for one, output in zip(rendered, outputs, strict=True)
        ]

    def chat_token_ids(self, messages: Conversation) -> tuple[int, ...]:
        """The prompt of one conversation: at most one BOS, all messages, the beginning of the answer.

        Raises RequestError for messages that are refused, and for a model without chat template.
        """
        return self._chat.encode(messages).token_ids

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
        asked = list_requests(prompts, sampling_params, priority, self._request_ids)
        self.prepare(one.params for one in asked)
        return asked

    def prepare(self, params: Iterable[SamplingParams]) -> None:
        """Compile what requests with these parameters need, as far as it is missing. `generate` does so by
        itself; requests that are added to an engine by hand are refused until it is done."""
        needed = {one.sampler for one in params}
        missing = {sampler for sampler in needed if sampler.choose(self.runner.samplers) is None}
        if missing:
            total = len(self.runner.missing_programs(missing))
            with progress_bar("compiling", total, enabled=self.config.show_progress) as update:
                self.runner.prepare(missing, update)

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
        self._chat.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _variants(
    config: EngineConfig, model: ModelConfig, max_model_len: int, logits_fn: LogitsFn | None
) -> Variants:
    """Raises ConfigError for a function that cannot be compiled into the steps."""
    if logits_fn is not None:
        if config.samplers not in (None, ("extended",)):
            raise ConfigError("samplers", config.samplers, "with logits_fn, every step is 'extended'")
        for slots in sorted(
            {bucket.slots for kind in resolve_buckets(config, max_model_len) for bucket in kind}
        ):
            check_logits_fn(logits_fn, slots, model.vocab_size)
        return Variants((Sampler.EXTENDED,), logits_fn)
    if config.samplers is None:
        return Variants()
    return Variants(tuple(Sampler[name.upper()] for name in config.samplers))


def _runner(
    config: EngineConfig, model: ModelConfig, max_model_len: int, model_dir: Path, variants: Variants
) -> Runner:
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
            found = temp_bytes(model, shape, program, device, attention, variants.logits_fn)
            step_bytes = max(step_bytes, found)
        step_bytes += shape.extra_bytes(model)  # which may be needed later
    num_pages = choose_num_pages(config, model, max_model_len, memory_of(device)._replace(step=step_bytes))
    num_programs = len(programs_for(buckets, variants.samplers))
    with progress_bar("compiling", num_programs, enabled=config.show_progress) as update:
        try:
            shape = shape._replace(num_pages=num_pages)
            return Runner(model, params, shape, buckets, device, update, attention, variants)
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
