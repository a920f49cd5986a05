"""LLM: a model directory in, texts out."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from jbatch.config import EngineConfig, ModeName, UpdateMode
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.runner import KV
from jbatch.engine.batch import complete
from jbatch.engine.callers import AsyncStream, Callers
from jbatch.engine.metric import Metric
from jbatch.engine.prefilled import PARAMS as PREFILL_PARAMS
from jbatch.engine.prefilled import Prefilled, prefill
from jbatch.engine.prompts import Prompt, UncheckedRequest, list_requests
from jbatch.engine.replicas import AnyEngine, single
from jbatch.engine.scoring import SCORE_PARAMS, Score, score_of, scored_from
from jbatch.engine.stream import Deltas, TextDelta, stream
from jbatch.engine.wishes import WishLists
from jbatch.engine_options import EngineOptions, with_options_shown
from jbatch.errors import ConfigError, RequestError, check_option_names
from jbatch.host.limits import Limits
from jbatch.llm.compiling import CallPrograms, compile_buckets, prepare
from jbatch.llm.engines import AnyPolicy, new_engine
from jbatch.llm.opening import describe_opened, open_model
from jbatch.llm.updating import update_weights
from jbatch.llm.warning import warn_of
from jbatch.model_dir.tuned import with_tuned
from jbatch.names_elsewhere import attribute_instead_of
from jbatch.outputs import Label, RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.seam.runner import Runner
from jbatch.text.chat_options import ChatFields, options_of
from jbatch.text.messages import Conversation, list_conversations
from jbatch.text.model_tokenizer import ModelTokenizer

Prompts = Prompt | Sequence[Prompt]
ParamsOfAll = SamplingParams | Sequence[SamplingParams] | None


@with_options_shown
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
      options: the fields of EngineConfig, by name. With `tuned`, a file of `jbatch tune`, its options stand
        in the place of the defaults.

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
        **options: Unpack[EngineOptions],
    ):
        check_option_names(
            options, EngineConfig.__dataclass_fields__, "LLM", SamplingParams.__dataclass_fields__
        )
        if not isinstance(model, (str, os.PathLike)) or model == "":
            raise ConfigError("model", model, "must be a path: the directory of a model")
        self.config = EngineConfig(**with_tuned(options))
        self._model_dir = Path(model)
        self._opened = open_model(self._model_dir, self.config, tokenizer, chat_template, logits_fn)
        self.model_config, self.max_model_len = self._opened.model, self._opened.max_model_len
        self.chat_encoder, self.runner = self._opened.chat_encoder, self._opened.runners[0]
        self._request_ids = itertools.count()
        self.engine = new_engine(self._opened, self.config)
        self._callers = Callers(self.engine, self.prepare)

    def __reduce__(self) -> NoReturn:
        reason = "as it holds a device's memory: make one in each process"
        raise TypeError(f"an LLM is neither pickled nor copied, {reason}")

    def __repr__(self) -> str:
        return f"<LLM {self._model_dir}: {'closed' if self.engine.closed else describe_opened(self._opened)}>"

    if not TYPE_CHECKING:  # or type checkers would let every name pass

        def __getattr__(self, name: str) -> NoReturn:
            """Say what there is instead of what an LLM has elsewhere."""
            instead = attribute_instead_of(name)
            hint = "" if instead is None else f": {instead}"
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self
            )

    def generate(
        self,
        prompts: Prompts,
        sampling_params: ParamsOfAll = None,
        *,
        use_tqdm: bool = True,
        **wishes: Unpack[WishLists],
    ) -> list[RequestOutput]:
        """Complete each prompt; results in the order of the prompts.

        A prompt that cannot be served ends with finish_reason "error" and the reason in `error`; the
        others go on. It warns where some failed, and where more than half of the outputs were cut off by
        their length.

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
        return self._complete(self._list(prompts, sampling_params, wishes), use_tqdm)

    def _complete(self, requests: Sequence[UncheckedRequest], show_progress: bool) -> list[RequestOutput]:
        """For methods that users call: warnings name the place where."""
        outputs = complete(self.engine, requests, *self._compiling(), show_progress=show_progress)
        warn_of(requests, outputs, stacklevel=3)
        return outputs

    async def agenerate(
        self, prompts: Prompts, sampling_params: ParamsOfAll = None, **wishes: Unpack[WishLists]
    ) -> list[RequestOutput]:
        """`generate` for `await`. Any number of calls of this and of `astream` share one batch.

        The engine's steps run in a thread, and the event loop goes on. To cancel the task is to abort its
        requests, and no others. An error of a step, as of a device that is lost, ends all calls with it; the
        next ones work. It warns as `generate` does.

        Raises:
          JBatchError: while a call of `generate` or `stream` has the engine, or it has requests that were
            added by hand.
        """
        requests = self._list(prompts, sampling_params, wishes)
        stream = AsyncStream(self._shared(), requests, lambda progress, outputs: list(outputs))
        by_id = {output.request_id: output async for output in stream}
        outputs = [by_id[request.request_id] for request in requests]
        warn_of(requests, outputs, stacklevel=2)
        return outputs

    def score(
        self, prompts: Prompts, *, first_scored: Sequence[int] | None = None, use_tqdm: bool = True
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
        requests = scored_from(requests, firsts)
        outputs = self._complete(requests, use_tqdm)
        return [score_of(output, first) for output, first in zip(outputs, firsts, strict=True)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: ParamsOfAll = None,
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
        outputs = self._complete(self._list(prompts, sampling_params, {}), use_tqdm)
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
        self, prompts: Prompts, sampling_params: ParamsOfAll = None, **wishes: Unpack[WishLists]
    ) -> Iterator[TextDelta]:
        """Complete each prompt, as `generate` does, and give the texts piece by piece while they grow.

        The pieces of one sample, joined, are its text in `generate`. None breaks a character, or shows the
        beginning of what turns out to be a stop string. The request's output comes with its last piece.
        Who leaves the iteration early (or closes the iterator) aborts what has not ended. One stream may be
        read at a time; for many there is `astream`. It warns of nothing: each output says how it ended.
        """
        requests = self._list(prompts, sampling_params, wishes, streamed=True)
        return stream(self.engine, requests, *self._compiling())

    def astream(
        self, prompts: Prompts, sampling_params: ParamsOfAll = None, **wishes: Unpack[WishLists]
    ) -> AsyncStream[TextDelta]:
        """`stream` for `async for`. Any number of calls of this and of `agenerate` share one batch.

        Cancelling a task that reads it, or `aclose`, aborts its requests and no others. It warns of
        nothing, as `stream`.
        """
        requests = self._list(prompts, sampling_params, wishes, streamed=True)
        return AsyncStream(self._shared(), requests, Deltas(self._opened.tokenizer, requests).take_in)

    def _shared(self) -> Callers:
        """Who may call at once, for the present engine."""
        with self.runner.tenancy.lock:  # two threads may come at once
            if self._callers.engine is not self.engine:
                self._callers = Callers(self.engine, self.prepare)
            return self._callers

    def _list(
        self, prompts: Prompts, params: ParamsOfAll, wishes: WishLists, *, streamed: bool = False
    ) -> list[UncheckedRequest]:
        """Raises what `generate` raises for its arguments."""
        params = self.get_default_sampling_params() if params is None else params
        requests = list_requests(prompts, params, wishes, self._request_ids)
        return [request._replace(streamed=streamed) for request in requests]

    def _compiling(self) -> tuple[Any, Any]:
        """What a call does before its requests are queued, and once they are."""
        programs = CallPrograms(self._opened.runners, self.engine)
        return programs.declare, programs.prepare

    def prepare(self, params: Iterable[SamplingParams] | None = None) -> None:
        """Compile in advance what any number of requests with these parameters may need; by default, with all
        that the option `samplers` provides for. On a CPU `generate` compiles just what its requests need.

        Requests that are added to an engine by hand are refused where nobody provided for their parameters.
        What else they need is compiled with their first step, if not before.
        """
        params = None if params is None else list(params)
        for runner in self._opened.runners:
            prepare(runner, params, in_run=self.engine.has_unfinished)

    def new_engine(
        self,
        *,
        mode: ModeName | None = None,
        policy: AnyPolicy | None = None,
        limits: Limits | None = None,
        runner: Runner[Any] | None = None,
    ) -> AnyEngine:
        """A fresh engine on the same weights, cache and compiled programs: for another mode, another order of
        admission (a name, or any sort key), other budgets per step (a function; its `landed`, where it has
        one, is given each step's record), or another runner: one that wraps `self.runner`, to see or change
        what passes, or one over a cache of its own of the same sizes.
        Its programs are compiled here, as `prepare` does.

        Only one engine of an LLM may have unfinished requests at a time: `add_request` of a second one on the
        same runner, or on one that wraps it, is a JBatchError. `generate` uses `self.engine`,
        which may be set to it.
        """
        engine = new_engine(self._opened, self.config, mode, policy, limits, runner)
        for each in self._opened.runners:
            compile_buckets(each, engine.scheduler.config.buckets, each.samplers)
            each.prepare_sharing()
        return engine

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
        update_weights(self._opened, self.engine, tree, weight_version, mode)

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
        engine = single(self.engine, "prefill")
        if not engine.scheduler.config.enable_prefix_caching:
            reason = "prefill needs it: what it computes is found by its tokens"
            raise ConfigError("enable_prefix_caching", False, reason)
        (request,) = list_requests([prompt], PREFILL_PARAMS, {}, self._request_ids)
        return prefill(engine, request, *self._compiling())

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
        return single(self.engine, "kv").read_pages(of, read, sample_idx)

    def reset_prefix_cache(self) -> bool:
        """Forget the keys and values of all prompts: the next ones are computed as a whole. False, and
        nothing is forgotten, while requests run.

        Raises JBatchError while a call has the engine, or a step is under way."""
        return self.engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """Counters, gauges and histograms of the present engine since it was made, under vLLM's names with
        the prefix "jbatch:". From any thread."""
        return self.engine.metrics(self.runner.compilations_after_warmup)

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
        return SamplingParams(**self._opened.sampling_defaults)

    def get_tokenizer(self) -> ModelTokenizer | None:
        """The tokenizer and its chat template, or None where the model directory has no tokenizer."""
        tokenizer = self._opened.tokenizer
        return None if tokenizer is None else ModelTokenizer(tokenizer, self.chat_encoder)

    def close(self) -> None:
        """Free the device's memory. The LLM cannot be used afterwards. Nothing happens in a forked process:
        the memory is its parent's."""
        if self.runner.tenancy.forked:
            return
        self._callers.close()
        for runner in self._opened.runners:
            runner.close()
        self.chat_encoder.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
