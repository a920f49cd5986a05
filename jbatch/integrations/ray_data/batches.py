"""The actor of a processor: one engine for all its batches."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jbatch.errors import JBatchError, JobError
from jbatch.integrations.ray_data.config import JBatchProcessorConfig
from jbatch.integrations.ray_data.engine_thread import EngineThread
from jbatch.integrations.ray_data.rows import (
    ERROR,
    PROMPTS,
    SAMPLING,
    Answer,
    RowRequest,
    answer_of,
    failed,
    request_of,
)
from jbatch.sampling_params import SamplingParams
from jbatch.text.chat_options import ChatOptions

COLUMNS = {
    "generated_text": pa.string(),
    "generated_tokens": pa.list_(pa.int64()),
    "num_input_tokens": pa.int64(),
    "num_generated_tokens": pa.int64(),
    "finish_reason": pa.string(),
    "time_taken_llm": pa.float64(),
    ERROR: pa.string(),
}  # in the order of Answer
RESTART = 1  # exit code: Ray starts the actor anew, and gives its batches to others


class Batches:
    """Answers batches, several at once; their rows share the engine's slots. A row that cannot be served has
    the reason in its `__inference_error__`, and the others go on.

    JAX is imported when this is made: by then Ray has said which GPUs the actor has.
    """

    def __init__(self, config: JBatchProcessorConfig):
        from jbatch.llm import LLM

        self._llm = LLM(config.model_source, **config.engine_kwargs)
        self._id_column = config.id_column
        params = self._llm.get_default_sampling_params()
        self._defaults = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
        self._engine = EngineThread(self._llm.engine)
        self._request_ids = map(str, itertools.count())
        self._prepared: set[Any] = set()
        self._has_answered = False

    async def __call__(self, batch: pa.Table) -> pa.Table:
        wanted = (*PROMPTS, SAMPLING, self._id_column)
        names = [name for name in batch.column_names if name in wanted]
        rows = batch.select(names).to_pylist() if names else [{}] * batch.num_rows
        try:
            answers = await asyncio.gather(*map(self._answer, rows))
        except JobError:
            # The device is lost, and with it this actor. An exception would end the whole job; one that has
            # worked is worth another try, by a new engine.
            if self._has_answered:
                os._exit(RESTART)
            raise
        self._has_answered = True
        return with_answers(batch, answers)

    async def _answer(self, row: dict[str, Any]) -> Answer:
        try:
            request = request_of(row, self._defaults, self._id_column)
            (output,) = self._engine.submit(lambda: [self._add(request)])
        except JobError:
            raise
        except Exception as error:  # of this row alone
            return failed(error)
        begin = time.monotonic()
        ended = await asyncio.wrap_future(output)
        return answer_of(ended, time.monotonic() - begin)

    def _add(self, request: RowRequest) -> str:
        """Queue a row's request; its id."""
        prompt = request.prompt
        if request.messages is not None:
            prompt = list(self._llm.chat_encoder.encode(request.messages, ChatOptions()).token_ids)
        if prompt is None:
            raise JBatchError("a request has a prompt or messages")
        if request.params.sampler not in self._prepared:
            self._llm.prepare([request.params])
            self._prepared.add(request.params.sampler)
        request_id = next(self._request_ids)
        self._llm.engine.add_request(request_id, prompt, request.params, index=request.seed_index)
        return request_id


def with_answers(batch: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    """A batch with the columns of its answers; what had these names before is replaced."""
    kept = batch.drop_columns([name for name in COLUMNS if name in batch.column_names])
    columns = zip(*answers, strict=True) if answers else [()] * len(COLUMNS)
    for (name, kind), values in zip(COLUMNS.items(), columns, strict=True):
        kept = kept.append_column(name, pa.array([_plain(value) for value in values], kind))
    return kept


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
