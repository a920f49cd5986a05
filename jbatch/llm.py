"""LLM: a model directory in, texts out."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, get_args

from jbatch.config import EngineConfig, ModeName, PolicyName, UpdateMode, check_choice, plain
from jbatch.device.build import build_runner
from jbatch.device.platform import prepare_jax
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.programs import programs_for
from jbatch.device.runner import KV
from jbatch.device.tree import sources_of
from jbatch.engine.callers import AsyncStream, Callers
from jbatch.engine.driver import Driver
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.engine.metric import Metric
from jbatch.engine.prefilled import PARAMS as PREFILL_PARAMS
from jbatch.engine.prefilled import Prefilled, prefill
from jbatch.engine.prompts import Prompt, UncheckedRequest, list_requests
from jbatch.engine.scoring import SCORE_PARAMS, Score, score_of
from jbatch.engine.stream import Deltas, TextDelta, stream
from jbatch.engine.wishes import WishLists
from jbatch.errors import ConfigError, RequestError, check_option_names
from jbatch.host.config import SchedulerConfig
from jbatch.host.lengths.find import find_predictor
from jbatch.host.limits import Limits, StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES, KeyFunction, Policy, policy_of
from jbatch.host.reach import reach
from jbatch.host.scheduler import Scheduler
from jbatch.model_dir.config_json import load_eos_token_ids, load_token_id
from jbatch.model_dir.generation_json import load_sampling_defaults
from jbatch.model_dir.paths import check_tokenizer_dir, unread_tokenizer
from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
from jbatch.outputs import Label, RequestOutput
from jbatch.progress import progress_bar
from jbatch.sampling_params import Sampler, SamplingParams, to_compile, with_unions
from jbatch.seam.bucket import Bucket, buckets_of
from jbatch.seam.runner import Runner
from jbatch.text.chat import ChatEncoder
from jbatch.text.chat_options import ChatFields, options_of
from jbatch.text.messages import Conversation, list_conversations
from jbatch.text.model_tokenizer import ModelTokenizer
from jbatch.text.tokenizer import Tokenizer, load_tokenizer


class LLM:
    """A model, ready to generate.

    `agenerate` and `astream` may be called from any number of threads at once, and so may `prepare`,
    `get_tokenizer`, `chat_token_ids`, and of `self.engine` what Engine says. One call of `generate`, `chat`,
    `score` or `stream` has the engine to itself: a second one, of whatever thread, is a JBatchError at once,
    and the first goes on. So is every call in a forked process: its JAX has no threads.

    Args:
      model: a Hugging Face model directory, or one that `jbatch convert` wrote.
      tokenizer: another directory to take the tokenizer from.
      chat_template: instead of the model's: a Jinja template, or the path of its file.
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
        chat_template: str | Path | None = None,
        logits_fn: LogitsFn | None = None,
        **options: Any,
    ):
        check_option_names(options, EngineConfig.__dataclass_fields__, "LLM")
        self.config = EngineConfig(**options)
        model_dir = Path(model)
        self.model_config = resolve_model(model_dir, self.config)
        self.max_model_len = resolve_max_model_len(self.config, self.model_config)
        self._sampling_defaults = load_sampling_defaults(model_dir, self.config.generation_config)
        if tokenizer is not None:
            check_tokenizer_dir(tokenizer)
        elif (reason := unread_tokenizer(model_dir)) is not None:
            warnings.warn(f"{model_dir} {reason}", stacklevel=2)  # prompts of token ids work
        tokenizer_dir = Path(tokenizer or model_dir)
        named = (load_token_id(model_dir, name) for name in ("bos_token_id", "eos_token_id"))
        self._tokenizer = load_tokenizer(tokenizer_dir, *named)
        self.chat_encoder = ChatEncoder(tokenizer_dir, self._tokenizer, chat_template)
        prepare_jax(self.config)
        self.runner = build_runner(model_dir, self.config, self.model_config, self.max_model_len, logits_fn)
        self.model_config = self.runner.spec.config  # in the device's dtype
        self._eos_token_ids = _eos_token_ids(model_dir, self._tokenizer)
        self._predictor = find_predictor(self.config.predictor)
        self._request_ids = itertools.count()
        self.engine = self._new_engine()
        self._callers = Callers(self.engine, self.prepare)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **wishes: Unpack[WishLists],
    ) -> list[RequestOutput]:
        """Complete each prompt; results in the order of the prompts.

        A prompt that cannot be served ends with finish_reason "error" and the reason in `error`; the
        others go on.

        Args:
          prompts: one, or a list: text, token ids, or vLLM's dictionaries.
          sampling_params: for all prompts, or one for each, taken as they are; without any, those of
            `get_default_sampling_params`.
          use_tqdm: show progress, on standard error.
          wishes: what a policy may go by, each a list with one for each prompt: `priority` (lower runs
            first), `deadline`, `predicted_len`, `user`, and the other fields of WishLists.

        Raises:
          ValueError: for lists of different lengths.
          TypeError: for sampling_params and wishes that are none.
          JBatchError: while `self.engine` has unfinished requests, of another call or added by hand. For many
            calls at once there is `agenerate`.
        """
        return self._generate(self._list(prompts, sampling_params, wishes), use_tqdm)

    def _generate(self, requests: list[UncheckedRequest], use_tqdm: bool) -> list[RequestOutput]:
        """The output of each request."""
        outputs = dict[str, RequestOutput]()
        num_tokens, begin = 0, time.monotonic()
        driver = Driver(self.engine, "generate")
        try:
            driver.begin()
            self._declare(request.params for request in requests)
            for request in requests:
                if (refused := driver.add(request)) is not None:
                    outputs[request.request_id] = refused
            self._prepare_reached()
            with progress_bar("generating", len(requests), enabled=use_tqdm) as update:
                while driver.unfinished:
                    step = driver.step()
                    outputs |= {output.request_id: output for output in step.outputs}
                    num_tokens += sum(len(new.token_ids) for new in step.progress)
                    update(len(outputs), f"{num_tokens / (time.monotonic() - begin):.0f} tokens/s")
        finally:  # after an interrupt, too
            driver.left = True
            driver.leave()
        return [outputs[request.request_id] for request in requests]

    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **wishes: Unpack[WishLists],
    ) -> list[RequestOutput]:
        """`generate` for `await`. Any number of calls of this and of `astream` share one batch.

        The engine's steps run in a thread, and the event loop goes on. To cancel the task is to abort its
        requests, and no others. An error of a step, as of a device that is lost, ends all calls with it; the
        next ones work.

        Raises:
          JBatchError: while a call of `generate` or `stream` has the engine, or it has requests that were
            added by hand.
        """
        requests = self._list(prompts, sampling_params, wishes)
        stream = AsyncStream(self._shared(), requests, lambda progress, outputs: list(outputs))
        by_id = {output.request_id: output async for output in stream}
        return [by_id[request.request_id] for request in requests]

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        first_scored: Sequence[int] | None = None,
        use_tqdm: bool = True,
    ) -> list[Score]:
        """The log-probability and the rank of each prompt's tokens; nothing is generated.

        As `generate`: a prompt that cannot be served has its reason in `error`, and the others go on.

        Args:
          first_scored: of each prompt, the first token that is asked about. Those before it may be in the
            cache, as where many continuations of one context are compared; else all is computed.

        Raises what `generate` raises.
        """
        requests = self._list(prompts, SCORE_PARAMS, {})
        firsts = [0] * len(requests) if first_scored is None else list(first_scored)
        if len(firsts) != len(requests):
            raise ValueError(f"{len(firsts)} of first_scored for {len(requests)} prompts: give one for each")
        asked = [
            request._replace(first_scored=first) for request, first in zip(requests, firsts, strict=True)
        ]
        outputs = self._generate(asked, use_tqdm)
        return [score_of(output, first) for output, first in zip(outputs, firsts, strict=True)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **options: Unpack[ChatFields],
    ) -> list[RequestOutput]:
        """Answer conversations, each a list of messages, with the model's chat template.

        As `generate`: one that the template refuses ends with its error, and the others go on. `prompt` of an
        output is the rendered text.

        Args:
          messages: one conversation, or a list of them. A message has a role (system, developer, user,
            assistant or tool) and a content, text or a list of text parts; an assistant's may have
            tool_calls, as OpenAI writes them.
          options: vLLM's, for all of them: the fields of ChatOptions, by name.

        Raises:
          RequestError: for an option that is refused, naming it.
          ConfigError: where transformers or jinja2 is not installed, or a template's file cannot be read.
        """
        checked = options_of(options)
        rendered = [self.chat_encoder.encode_or_error(each, checked) for each in list_conversations(messages)]
        prompts: list[Any] = [
            prompt if isinstance(prompt, RequestError) else list(prompt.token_ids) for prompt in rendered
        ]
        outputs = self.generate(prompts, sampling_params, use_tqdm=use_tqdm)
        return [
            output if isinstance(prompt, RequestError) else dataclasses.replace(output, prompt=prompt.text)
            for prompt, output in zip(rendered, outputs, strict=True)
        ]

    def chat_token_ids(self, messages: Conversation, **options: Unpack[ChatFields]) -> tuple[int, ...]:
        """The prompt of one conversation, as `chat` makes it: no BOS but the template's, all messages, the
        answer's beginning. Raises RequestError for messages that are refused, and for a model without chat
        template.
        """
        return self.chat_encoder.encode(messages, options_of(options)).token_ids

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **wishes: Unpack[WishLists],
    ) -> Iterator[TextDelta]:
        """Complete each prompt, as `generate` does, and give the texts piece by piece while they grow.

        The pieces of one sample, joined, are its text in `generate`. None breaks a character, or shows the
        beginning of what turns out to be a stop string. The request's output comes with its last piece.
        Who leaves the iteration early (or closes the iterator) aborts what has not ended. One stream may be
        read at a time; for many there is `astream`.
        """
        requests = self._list(prompts, sampling_params, wishes, streamed=True)
        return stream(self.engine, requests, self._declare, self._prepare_reached)

    def astream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **wishes: Unpack[WishLists],
    ) -> AsyncStream[TextDelta]:
        """`stream` for `async for`. Any number of calls of this and of `agenerate` share one batch.

        Cancelling a task that reads it, or `aclose`, aborts its requests and no others.
        """
        requests = self._list(prompts, sampling_params, wishes, streamed=True)
        return AsyncStream(self._shared(), requests, Deltas(self._tokenizer, requests).take_in)

    def _shared(self) -> Callers:
        """Who may call at once, for the present engine."""
        with self.runner.tenancy.lock:  # two threads may come at once
            if self._callers.engine is not self.engine:
                self._callers = Callers(self.engine, self.prepare)
            return self._callers

    def _list(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        wishes: WishLists,
        *,
        streamed: bool = False,
    ) -> list[UncheckedRequest]:
        """Raises what `generate` raises for its arguments."""
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        requests = list_requests(prompts, params, wishes, self._request_ids)
        return [request._replace(streamed=streamed) for request in requests]

    def prepare(self, params: Iterable[SamplingParams] | None = None) -> None:
        """Compile in advance what any number of requests with these parameters may need; by default, with all
        that the option `samplers` provides for. On a CPU `generate` compiles just what its requests need.

        Requests that are added to an engine by hand are refused where nobody provided for their parameters.
        What else they need is compiled with their first step, if not before.
        """
        in_run = self.engine.has_unfinished
        params = None if params is None else list(params)
        samplers = self.runner.samplers if params is None else self._declare(params)
        self._compile(self.runner.buckets, samplers, in_run=in_run)
        if params is None or any(sampling.n > 1 for sampling in params):
            self.runner.prepare_sharing(in_run=in_run)

    def _declare(self, params: Iterable[SamplingParams]) -> tuple[Sampler, ...]:
        needed = to_compile(sampling.sampler for sampling in params)
        self.runner.declare(sampler for sampler in needed if sampler.choose(self.runner.samplers) is None)
        return with_unions(needed)

    def _prepare_reached(self) -> None:
        reached = reach(self.engine.scheduler)
        self._compile(reached.buckets, reached.samplers)
        if reached.shares_pages:
            self.runner.prepare_sharing()

    def _compile(self, buckets: Iterable[Bucket], samplers: Iterable[Sampler], in_run: bool = False) -> None:
        provided = self.runner.samplers
        chosen = [best for sampler in samplers if (best := sampler.choose(provided)) is not None]
        self.runner.prepare(programs_for(buckets, chosen), in_run=in_run)

    def new_engine(
        self,
        *,
        mode: ModeName | None = None,
        policy: PolicyName | Policy | KeyFunction | None = None,
        limits: Limits | None = None,
        runner: Runner[Any] | None = None,
    ) -> Engine:
        """A fresh engine on the same weights, cache and compiled programs: for another mode, another order of
        admission (a name, or any sort key), other budgets per step, or another runner: one that wraps
        `self.runner`, to see or change what passes, or one over a cache of its own of the same sizes.
        Its programs are compiled here, as `prepare` does.

        Only one engine of an LLM may have unfinished requests at a time: `add_request` of a second one on the
        same runner, or on one that wraps it, is a JBatchError. `generate` uses `self.engine`,
        which may be set to it.
        """
        engine = self._new_engine(mode, policy, limits, runner)
        self._compile(engine.scheduler.config.buckets, self.runner.samplers)
        self.runner.prepare_sharing()
        return engine

    def _new_engine(
        self,
        mode: ModeName | None = None,
        policy: PolicyName | Policy | KeyFunction | None = None,
        limits: Limits | None = None,
        runner: Runner[Any] | None = None,
    ) -> Engine:
        key: Any = self.config.policy if policy is None else policy
        own = callable(key) or isinstance(key, Policy)
        name = self.config.policy if own else key  # which is checked
        config = dataclasses.replace(self.config, mode=mode or self.config.mode, policy=name)
        buckets = buckets_of(config, self.max_model_len)
        self.runner.declare(buckets=buckets)  # another mode has other steps
        scheduler = Scheduler(
            SchedulerConfig(
                shape=self.runner.shape,
                max_model_len=self.max_model_len,
                buckets=buckets,
                policy=policy_of(key) if own else POLICIES[name],
                admission=MODES[config.mode],
                batch_wait_timeout_s=config.batch_wait_timeout_s,
                reserve=config.admission,
                max_preemption_probability=config.max_preemption_probability,
                enable_prefix_caching=config.enable_prefix_caching,
            ),
            limits or (lambda view: StepLimits(config.max_num_batched_tokens, config.max_num_seqs)),
        )
        intake = Intake(
            vocab_size=self.model_config.vocab_size,
            max_seq_len=scheduler.max_seq_len,
            eos_token_ids=self._eos_token_ids,
            tokenizer=self._tokenizer,
            seed=config.seed,
            predictor=self._predictor,
        )
        return Engine(scheduler, self.runner if runner is None else runner, intake, overlap=config.overlap)

    def update_weights(
        self, tree: Any, *, weight_version: Label | None = None, mode: UpdateMode = "retract"
    ) -> None:
        """Go on with other weights of the same model, by the same compiled programs.

        From any thread, also while others generate: the weights change between two steps. From then on every
        token is what a fresh LLM with these weights draws behind the same tokens. It is all or nothing, but
        for a device that fails and for an interrupt: then every call is a JBatchError until another update
        has gone through.

        Args:
          tree: all parameters, as arrays of NumPy or JAX: an nnx module or state of `jbatch.device.model`, or
            a dictionary by the names of `weights()` or by Hugging Face's. They are rounded to the model's
            dtype and copied, one at a time: who gave them may change or donate them.
          weight_version: what outputs call these weights in `weight_versions`: text or an integer; by default
            the number of the update. The first weights are 0.
          mode: what becomes of requests that have not ended. "retract": those that run are prefilled again,
            with the tokens that they have. "wait": all end first, by the old weights. "abort": all end, with
            what they have. With these two, what others add meanwhile begins with the new weights. Outputs
            come as ever, from the call that asked for them.

        Raises:
          ConfigError: for a tree, a version or a mode that is none.
          weights.WeightsError: naming the arrays that are missing or unexpected, or do not fit. Nothing has
            changed then.
          JBatchError: within a step, as from a `logits_fn`, a policy or a signal's handler.
        """
        self.runner.tenancy.check_process()
        check_choice("mode", mode, get_args(UpdateMode))
        weight_version = plain(weight_version)
        if weight_version is not None and type(weight_version) not in (int, str):
            raise ConfigError("weight_version", weight_version, "must be text or an integer")
        self.runner.check_open()
        sources = sources_of(tree, self.model_config)
        tenant = self.runner.tenancy.tenant
        engine = tenant if isinstance(tenant, Engine) else self.engine
        engine.update(lambda: self.runner.replace_params(sources, weight_version), mode)

    def weights(self) -> dict[str, Any]:
        """The model's parameters by name, as arrays on the device.

        They are the engine's own: do not donate them, and do not keep them over an update, or their memory is
        held, too. Raises JBatchError where an update was cut off.
        """
        self.runner.check_params()
        return self.runner.params

    def prefill(self, prompt: Prompt) -> Prefilled:
        """Compute a prompt once, and keep it: until the handle is closed, prompts that begin with its tokens
        find the keys and values of its full pages, which nobody else is given.

            with llm.prefill(instructions) as handle:
                outputs = llm.generate([instructions + question for question in questions], params)

        Raises:
          ConfigError: with `enable_prefix_caching=False`, and where the pool has no room: beside all that is
            held, one sequence as long as any may be must find pages.
          JBatchError: for a prompt that is refused, and while someone else has the engine.
        """
        if not self.engine.scheduler.config.enable_prefix_caching:
            reason = "prefill needs it: what it computes is found by its tokens"
            raise ConfigError("enable_prefix_caching", False, reason)
        (request,) = list_requests([prompt], PREFILL_PARAMS, {}, self._request_ids)
        return prefill(self.engine, request, self._declare, self._prepare_reached)

    def kv(self, of: str | Prefilled, *, sample_idx: int = 0) -> KV:
        """Keys (0) and values (1) that are in the cache, on the host, in the model's dtype: of what `prefill`
        gave, its full pages; of a request that `self.engine` runs, all of its tokens but those that no step
        has computed, as the last one. One that waits has none.

        Args:
          of: a handle, or the id of a request that was added to `self.engine`.
          sample_idx: which of the request's samples.

        Raises:
          RequestError: for a request that is not known or has ended.
          JBatchError: for a handle that was closed, or whose pages were lost; and while a call has the
            engine, or a step is under way.
        """

        def read(page_ids: list[int], num_tokens: int) -> KV:
            return self.runner.read_pages(page_ids, num_tokens, in_run=self.engine.has_unfinished)

        if isinstance(of, Prefilled):
            return of.engine.read_held(of.hold_id, read)
        return self.engine.read_pages(of, read, sample_idx)

    def reset_prefix_cache(self) -> bool:
        """Forget the keys and values of all prompts: the next ones are computed as a whole. False, and
        nothing is forgotten, while requests run.

        Raises JBatchError while a call has the engine, or a step is under way."""
        return self.engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """Counters, gauges and histograms of the present engine since it was made, under vLLM's names with
        the prefix "jbatch:". From any thread."""
        engine = self.engine
        return engine.monitor.read(engine.scheduler, engine.summary, self.runner.compilations_after_warmup)

    def start_profile(self, directory: str | Path) -> None:
        """Trace what JAX and the device do, until `stop_profile`, into a directory that TensorBoard and
        Perfetto read. Steps are marked in it.

        Raises JBatchError where a trace is under way.
        """
        self.runner.profile.start(directory)

    def stop_profile(self) -> None:
        """Write the trace. Raises JBatchError where none is under way."""
        self.runner.profile.stop()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` takes where it is given no parameters: jbatch's own defaults, and before them the
        sampling values of the model's generation_config.json (not with `generation_config="jbatch"`). A
        `max_tokens` from there is cut where the context ends.

        To change some of them: `dataclasses.replace(llm.get_default_sampling_params(), temperature=0)`.
        """
        return SamplingParams(**self._sampling_defaults)

    def get_tokenizer(self) -> ModelTokenizer | None:
        """The tokenizer and its chat template, or None where the model directory has no tokenizer."""
        return None if self._tokenizer is None else ModelTokenizer(self._tokenizer, self.chat_encoder)

    def close(self) -> None:
        """Free the device's memory. The LLM cannot be used afterwards. Nothing happens in a forked process:
        the memory is its parent's."""
        if self.runner.tenancy.forked:
            return
        self._callers.close()
        self.runner.close()
        self.chat_encoder.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _eos_token_ids(model_dir: Path, tokenizer: Tokenizer | None) -> frozenset[int]:
    """What config, generation config and tokenizer name, together: Llama 3 has three."""
    eos = load_eos_token_ids(model_dir)
    named = None if tokenizer is None else tokenizer.eos_token_id
    return eos if named is None else eos | {named}
