"""What a caller of LLM may give as prompts and parameters, as requests to add to an engine."""

from __future__ import annotations

import numbers
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jbatch.engine.replicas import AnyEngine
from jbatch.engine.wishes import schedule_fields, wishes_of_each
from jbatch.errors import JBatchError, RequestError
from jbatch.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from jbatch.sampling_params import SamplingParams

Prompt = str | Sequence[int] | dict[str, Any]  # text, token ids, {"prompt": ...} or {"prompt_token_ids": ...}

CHAT = "is of a conversation: give LLM.chat a list of messages"
NO_WISHES: Mapping[str, Any] = MappingProxyType({})


class UncheckedRequest(NamedTuple):
    """A request that an engine has not checked yet."""

    request_id: str
    prompt: Prompt | RequestError  # an error: it was refused before there was a prompt
    params: SamplingParams
    wishes: Mapping[str, Any] = NO_WISHES  # what a policy may go by
    prompt_idx: int = 0  # in the list of prompts
    streamed: bool = False  # its tokens are shown one by one
    first_scored: int = 0  # with prompt_logprobs

    @property
    def cache_salt(self) -> str | None:
        """What it shares keys and values by."""
        return self.prompt.get("cache_salt") if isinstance(self.prompt, dict) else None

    def add_to(self, engine: AnyEngine) -> RequestOutput | None:
        """Queue it; its output, where it is refused."""
        try:
            engine.add_request(
                self.request_id,
                _content(self.prompt),
                self.params,
                request_idx=self.prompt_idx,
                cache_salt=self.cache_salt,
                streamed=self.streamed,
                first_scored=self.first_scored,
                **schedule_fields(self.wishes, engine.clock()),
            )
        except RequestError as error:
            return _refused(self.request_id, self.prompt, error)
        except JBatchError:
            raise
        except Exception as error:  # a tokenizer's, or of a prompt of some odd type: of this request alone
            refusal = RequestError("prompt", self.prompt, f"{type(error).__name__}: {error}")
            return _refused(self.request_id, refusal, refusal)
        return None


def list_requests(
    prompts: Any,
    sampling_params: SamplingParams | Sequence[SamplingParams],
    wishes: Mapping[str, Any],
    request_ids: Iterator[int],
) -> list[UncheckedRequest]:
    """One for each prompt.

    Raises:
      ValueError: for lists of different lengths.
      TypeError: for prompts, sampling_params and wishes that are none.
    """
    listed = _as_list(prompts)
    params = _params_of_each(sampling_params, len(listed))
    each = wishes_of_each(wishes, len(listed))
    all_fields = zip(listed, params, each, range(len(listed)), strict=True)
    return [UncheckedRequest(str(next(request_ids)), *fields) for fields in all_fields]


def _as_list(prompts: Any) -> list[Prompt]:
    """A list of prompts, also of a single one: a string, a dictionary, or a list of integers."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    whole: Any = prompts
    if not isinstance(prompts, Iterable):
        raise TypeError(f"prompts={prompts!r}: must be text, token ids or a dictionary, or a list of these")
    listed = list(prompts)
    single = bool(listed) and all(isinstance(item, numbers.Integral) for item in listed)
    return [whole] if single else listed


def _content(prompt: Prompt | RequestError) -> str | Sequence[int]:
    if isinstance(prompt, RequestError):
        raise prompt
    if not isinstance(prompt, dict):
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], dict):
            raise RequestError("prompt", prompt, CHAT)
        return prompt
    if "role" in prompt:
        raise RequestError("prompt", prompt, CHAT)
    given = {name: value for name, value in prompt.items() if value is not None and name != "cache_salt"}
    if list(given) not in (["prompt"], ["prompt_token_ids"]):
        must = "a dictionary holds prompt or prompt_token_ids, and at most cache_salt besides"
        raise RequestError("prompt", list(given), must)
    return next(iter(given.values()))


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams], num_prompts: int
) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if isinstance(params, Mapping):
        raise TypeError(f"sampling_params={params!r:.80}: give SamplingParams(**...) of it")
    if isinstance(params, (str, bytes)) or not isinstance(params, Sequence):
        raise TypeError(f"sampling_params={params!r:.80}: must be SamplingParams, or a list of them")
    if len(params) != num_prompts:
        raise ValueError(
            f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one for each"
        )
    for each in params:
        if not isinstance(each, SamplingParams):
            raise TypeError(f"sampling_params holds {each!r}, which is no SamplingParams")
    return list(params)


def _refused(request_id: str, prompt: Prompt | RequestError, error: RequestError) -> RequestOutput:
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
